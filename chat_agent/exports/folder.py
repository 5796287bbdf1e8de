"""A folder or a file that is there completely, or not at all."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from tools.errors import UserError
from tools.saving.archive import PREFIX, commit, explain


# Not ours, no hindrance: they stay.
BESIDE = (".DS_Store", "desktop.ini", "Thumbs.db", ".git", ".gitattributes", ".gitignore")


@contextmanager
def whole_folder(path, may_replace, mark):
    """Yields a new folder to fill; it gets the name `path` when everything in it is written.

    A folder that is already there is replaced when it is an earlier one of ours: it holds the file `mark` (or nothing),
    and `may_replace(file name)` holds for all of it but what systems and git leave anywhere; that stays. Else UserError
    2.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} 是一个文件，请用 --output 给一个文件夹。", 2)
    there = [p for p in path.iterdir() if not _is_beside(p.name)] if path.exists() else []
    foreign = [p.name for p in there if p.is_dir() or not may_replace(p.name)]
    if foreign or there and not (path / mark).exists():
        name = sorted(foreign or (p.name for p in there))[0]
        raise UserError(f"{path} 里已有别的文件（{name}），不会覆盖。请用 --output 换一个文件夹。", 2)
    new, old = (path.parent / f"{PREFIX}{path.name}-{os.getpid()}{end}" for end in ("", "-old"))
    try:
        new.mkdir(parents=True)
        yield new
        readable = new.stat().st_mode & 0o666           # some libraries write files that only their owner may read
        for file in new.iterdir():
            file.chmod(readable)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        for file in [p for p in old.iterdir() if _is_beside(p.name)] if old.exists() else []:
            os.replace(file, path / file.name)
    except OSError as error:
        raise explain(error, path / "*") from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        if old.exists() and not any(_is_beside(p.name) for p in old.iterdir()):
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)


def _is_beside(name):
    return name in BESIDE or name.startswith("._")      # macOS keeps a second file for each on foreign disks


def check_replace(path, *marks):
    """UserError 2 if a file at `path` is not an earlier one of ours: `marks` (bytes) stand near its beginning."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if not all(mark in head for mark in marks):
        raise UserError(f"{path} 已存在，而且不是这样导出的文件，不会覆盖。请用 --output 换一个名字。", 2)


@contextmanager
def whole_file(path):
    """Yields a temporary path to write; it gets the name `path` when it is on the disk, readable as the umask says."""
    path = Path(path)
    temporary = path.absolute().parent / f"{PREFIX}{path.name}-{os.getpid()}"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        readable = temporary.stat().st_mode & 0o666
        yield temporary
        temporary.chmod(readable)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        commit(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, body):
    Path(path).write_text(json.dumps(body, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_json(path):
    """A JSON object. UserError 3 when it is missing or damaged."""
    try:
        found = json.loads(Path(path).read_bytes())         # bytes: editors save with a mark, or as UTF-16
    except FileNotFoundError:
        raise UserError(f"找不到 {path}。请给出完整的文件夹。", 3) from None
    except (OSError, ValueError) as error:
        raise UserError(f"读不了 {path}（{error}）。请重新下载或导出。", 3) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} 不是 JSON 对象。请重新下载或导出。", 3)
    return found

"""A folder or a file that is there completely, or not at all."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from tools.errors import UserError
from tools.saving.archive import PREFIX, commit, explain


@contextmanager
def whole_folder(path, may_replace):
    """Yields a new folder to fill; it gets the name `path` when everything in it is written.

    A folder that is already there is replaced when `may_replace(file name)` holds for all it contains, else UserError 2.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} 是一个文件，请用 --output 给一个文件夹。", 2)
    foreign = [p.name for p in path.iterdir() if p.is_dir() or not may_replace(p.name)] if path.exists() else []
    if foreign:
        raise UserError(f"{path} 里已有别的文件（{sorted(foreign)[0]}），不会覆盖。请用 --output 换一个文件夹。", 2)
    new, old = (path.absolute().parent / f"{PREFIX}{path.absolute().name}-{os.getpid()}{end}" for end in ("", "-old"))
    try:
        new.mkdir(parents=True)
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except OSError as error:
        raise explain(error, path / "*") from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_file(path):
    """Yields a temporary path to write; it gets the name `path` when it is on the disk."""
    path = Path(path)
    temporary = path.absolute().parent / f"{PREFIX}{path.name}-{os.getpid()}"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
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
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"找不到 {path}。请给出 --to hf 导出的完整文件夹。", 3) from None
    except (OSError, ValueError) as error:
        raise UserError(f"读不了 {path}（{error}）。请重新导出。", 3) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} 不是 JSON 对象。请重新导出。", 3)
    return found

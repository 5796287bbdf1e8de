"""Files that are replaced as a whole or not at all, and JSON that carries its own digest. Needs no torch.

A file is written under a temporary name, flushed, renamed, and its folder flushed: a crash leaves the old one or the
new one.
"""
import errno
import hashlib
import json
import math
import os
import stat
import time
from pathlib import Path

from tools.errors import UserError, explain

PREFIX = ".tmp-"  # temporary names; whatever carries it is no checkpoint


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or not to be trusted (code 3), or that is something else (code 4)."""

    def __init__(self, message, code=3):
        super().__init__(message, code)


def write_temporary(path, fill):
    """Create a temporary file beside `path`, let `fill(handle)` write it, flush it to the disk. Returns (its path,
    result)."""
    path = Path(path)
    temporary = path.parent / f"{PREFIX}{path.name}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try:
            result = fill(handle)
            os.fsync(handle)
        finally:
            os.close(handle)
        return temporary, result
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explain(error, path) from error
        raise


def commit(temporary, path):
    """Give a finished temporary file its name: from here on a crash finds the new file, before it the old one."""
    try:
        replace(temporary, path)
        sync_folder(Path(path).parent)
    except OSError as error:
        raise explain(error, path) from error


def replace(source, target):
    """os.replace; on Windows again for a second while somebody is just reading one of the two."""
    for left in reversed(range(6 if os.name == "nt" else 1)):
        try:
            return os.replace(source, target)
        except PermissionError:
            if not left:
                raise
            time.sleep(0.2)


def sync_folder(folder):
    """A rename is on the disk only when its folder is (Windows has no such call)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot flush a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def still_written(name):
    """Whether the process that began a temporary file (…-<pid>-<random>) still runs, and is not this one."""
    try:
        pid = int(name.split("-")[-2])
    except (ValueError, IndexError):
        return False
    if os.name == "nt" or pid == os.getpid():
        return False  # Windows refuses to delete an open file anyway
    return is_running(pid)


def is_running(pid):
    """Whether there is a process of that number here; True where that cannot be told."""
    if os.name == "nt" or not isinstance(pid, int) or pid <= 0:
        return True                                      # Windows would end the process that is asked
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process: it lives
        pass
    return True


def put(path, temporary):
    """`commit`, and on failure no temporary file is left."""
    try:
        commit(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_folder(work, folder):
    """Give a finished folder its name. Where another run has put the same there meanwhile, and reads it, that stays."""
    try:
        os.replace(work, folder)
    except OSError:
        if not (Path(folder) / "meta.json").exists():
            raise


def write_bytes(path, content):
    """Write a file as a whole; its folder is made. Raises UserError 7 (disk full) or 2."""
    def fill(handle):
        view = memoryview(content)
        while len(view):
            view = view[os.write(handle, view):]
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from error
    put(path, write_temporary(path, fill)[0])


def bad(path, why, code=3):
    return CheckpointError(f"检查点不能用：{path}：{why}", code)


def open_regular(path):
    """Open a plain file for reading; a pipe or a device would block for ever. Raises CheckpointError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise bad(path, "不是普通文件")
        return open(path, "rb")
    except FileNotFoundError:
        raise CheckpointError(f"找不到检查点：{path}") from None
    except OSError as error:
        raise bad(path, f"打不开（{error.strerror}）") from error


def finite(value):
    """Plain values with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _render(body):
    def text(value):
        return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True,
                          allow_nan=False).encode(errors="surrogatepass")
    return text({**body, "sha256": hashlib.sha256(text(body)).hexdigest()})


def write_json(path, body):
    """Write a dict of plain values atomically, its digest under the key "sha256". Raises UserError 7 or 2."""
    write_bytes(path, _render(body))


def read_json(path):
    """Read a file of `write_json`; every byte must be as it was written. Raises CheckpointError 3."""
    with open_regular(path) as file:
        raw = file.read()
    try:
        body = json.loads(raw)
        body.pop("sha256")
        if _render(body) == raw:
            return body
    except Exception:  # not even JSON any more
        pass
    raise bad(path, "内容和校验码不符，文件已损坏")

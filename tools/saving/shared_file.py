"""A text file that several runs append to while one of them takes lines out of it: no line of another is ever lost.

Whoever appends shares a lock on the file itself, whoever rewrites it holds the lock alone, and both look whether the
file they have opened is still the one of that name. No second file lies beside the log, as a lock of the filelock
package would need.
"""
import errno
import os
import stat
from contextlib import contextmanager

from tools.saving.atomic import PREFIX, commit, explain, still_written, write_temporary

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextmanager
def _opened(path, alone):
    """A descriptor of the file at `path`, which is made, under its lock. An OSError is told as what it means to the
    user."""
    flags = (os.O_RDWR if alone else os.O_WRONLY | os.O_APPEND) | os.O_CREAT | getattr(os, "O_BINARY", 0)
    try:
        while True:
            handle = os.open(path, flags, 0o644)
            try:
                _lock(handle, alone)
                if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                    yield handle
                    return
            finally:
                os.close(handle)
    except OSError as error:
        raise explain(error, path) from error


def _lock(handle, alone):
    try:
        if os.name == "nt":
            os.lseek(handle, 1 << 30, os.SEEK_SET)      # far behind the text: Windows forbids reading what is locked
            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EDEADLK):
            raise                                       # a file system without locks: as well as it goes


def append(path, text, sync=False):
    """Append one line with one write call: it is there whole or not at all, also beside another writer."""
    data = (text + "\n").encode("utf-8", "replace")
    with _opened(path, alone=False) as handle:
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, "disk full")
        if sync:
            os.fsync(handle)


def drop_half_line(path, ours):
    """Cut off an unfinished last line for which ours(bytes) holds; another's gets its line end instead."""
    if not path or not path.exists() or not path.stat().st_size:
        return
    with _opened(path, alone=True) as handle:
        size = os.fstat(handle).st_size
        os.lseek(handle, max(0, size - (1 << 20)), os.SEEK_SET)
        tail = os.read(handle, 1 << 20).rpartition(b"\n")[2]
        if tail and ours(tail):
            os.ftruncate(handle, size - len(tail))
        elif tail:
            os.lseek(handle, 0, os.SEEK_END)
            os.write(handle, b"\n")


def rewrite(path, keep):
    """Leave only the lines for which keep(text) holds; a crash leaves the old file or the new one. One line at a time
    is in memory."""
    if not path or not path.exists():
        return
    path = path.resolve()                               # of a link the file
    for left in path.parent.glob(f"{PREFIX}{path.name}-*"):
        if not still_written(left.name):
            left.unlink(missing_ok=True)
    with _opened(path, alone=True) as handle:
        temporary, dropped = write_temporary(path, lambda out: _copy(handle, out, keep))
        if not dropped:
            temporary.unlink()
        elif os.name != "nt":
            os.chmod(temporary, stat.S_IMODE(os.fstat(handle).st_mode))
            commit(temporary, path)
    # an open file cannot be replaced there: a line of this very instant may be lost
    if dropped and os.name == "nt":
        commit(temporary, path)


def _copy(source, target, keep):
    """-> how many lines were left out."""
    dropped = 0
    with os.fdopen(os.dup(source), "rb") as lines, os.fdopen(os.dup(target), "wb") as kept:
        for line in lines:
            stays = keep(line.decode("utf-8", "replace"))
            dropped += not stays
            if stays:
                kept.write(line)
    return dropped

"""One run per output folder. The operating system holds the lock, so that a killed run frees it; the file stays behind.

Not the filelock package that comes with torch: it cannot say who holds the folder, older versions leave the lock to
forked children (an orphaned data worker would keep it), and where a file system has no locks it quietly falls back to a
file that survives a kill.
"""
import errno
import os
import time
from pathlib import Path

from tools.errors import UserError
from tools.saving.atomic import explain

if os.name == "nt":
    import msvcrt
else:
    import fcntl

BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
# descriptors of this process, closed in forked children: an orphaned data worker must not keep the folder
_held = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [os.close(_held.pop()) for _ in range(len(_held))])


class FolderLock:
    """`acquire()` raises UserError 6 when another run, in this process or any other, owns the folder."""

    def __init__(self, folder):
        self.path, self.handle = Path(folder) / ".lock", None

    def acquire(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise explain(error, self.path) from error
        try:
            self._lock(handle)
        except OSError as error:
            os.lseek(handle, 0, os.SEEK_SET)
            owner = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            if error.errno in BUSY:
                raise UserError(f"输出文件夹 {self.path.parent} 正被另一个训练占用（{owner.strip() or '未知进程'}）。"
                                f"请等它结束，或用 --name 换一个文件夹。", 6) from None
            raise UserError(f"{self.path.parent} 所在的文件系统不支持文件锁（{error.strerror}），请换一个输出文件夹。", 2) from error
        self.handle = handle
        _held.add(handle)
        try:  # only for the message above; on a full disk the lock holds all the same
            os.ftruncate(handle, 0)
            os.write(handle, f"进程 {os.getpid()}，{time.strftime('%Y-%m-%d %H:%M:%S')} 开始".encode())
        except OSError:
            pass

    @staticmethod
    def _lock(handle):
        if os.name == "nt":
            os.lseek(handle, 1 << 30, os.SEEK_SET)  # far behind the text: Windows forbids reading what is locked
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self):
        if self.handle is not None and self.handle in _held:  # in a forked child it is closed already
            _held.discard(self.handle)
            os.close(self.handle)
        self.handle = None

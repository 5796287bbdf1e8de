"""Files that are either whole or refused: atomic writing, a digest inside each file, distrustful reading.

torch does not check the content of its archives: a flipped bit in a weight loads without a word. So every file written here
carries its own SHA-256. A torch archive is a zip file and ends with a free comment; the digest stands there, so that plain
`torch.load` still reads the file. JSON carries it as a key.
"""
import errno
import hashlib
import json
import os
import pickletools
import re
import stat
import time
import zipfile
from pathlib import Path

import torch

from tools.errors import UserError

PREFIX = ".tmp-"  # temporary names; whatever carries it is no checkpoint
MARK = b"TinySeek sha256:"
COMMENT = len(MARK) + 64  # bytes of the zip comment: the mark and the digest in hex
EOCD = 22  # bytes of the zip end record; its last two hold the length of the comment
CHUNK = 1 << 20  # bytes that are gathered before they go to the disk
# All our own files need; far less than weights_only allows, so that no file can even ask for a huge bytearray.
ALLOWED = re.compile(
    r"(collections (OrderedDict|Counter)|__builtin__ set"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? \w+Storage|torch (Size|device)"
    r"|torch (float|bfloat|int|uint|complex)\d+|torch bool)")
FOREIGN = ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")  # other ways for a pickle to name an object; torch writes none


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or not to be trusted (code 3), or that is something else (code 4)."""

    def __init__(self, message, code=3):
        super().__init__(message, code)


def explain(error, path):
    """Turn the OSError of a write under `path` into a UserError: 7 disk full, 2 not writable."""
    folder = Path(path).parent
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG):
        return UserError(f"磁盘已满（或超出配额），没能写入 {path}。已有的存点完好；请腾出空间后重新运行，会接着训练。", 7)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"没有写入权限：{folder}。请改用可写的文件夹（--out_dir）。", 2)
    return UserError(f"写不了 {path}：{error.strerror or error}。请检查这个文件夹。", 2)


class HashedFile:
    """What torch.save writes to: hashes the stream, keeps the last 22 bytes back (the end record still has to learn of
    the comment). An error is remembered, not raised: torch writes from a destructor, where raising would abort."""

    def __init__(self, handle):
        self.handle, self.sha, self.held, self.error = handle, hashlib.sha256(), bytearray(), None

    def write(self, chunk):
        view = memoryview(chunk).cast("B")
        if len(view) >= CHUNK:
            self._emit(self.held)
            self._emit(view[:-EOCD])
            self.held = bytearray(view[-EOCD:])
        else:
            self.held += view
            if len(self.held) > CHUNK:
                self._emit(self.held[:-EOCD])
                del self.held[:-EOCD]
        return len(view)

    def flush(self):
        pass

    def _emit(self, data):
        view = memoryview(data)
        self.sha.update(view)
        try:
            while len(view) and self.error is None:
                view = view[os.write(self.handle, view):]
        except OSError as error:
            self.error = error

    def finish(self):
        """Write the end record with the digest as its comment. Returns the SHA-256 (hex) of the whole file."""
        record = bytes(self.held[-EOCD:])
        assert record[:4] == b"PK\5\6" and record[-2:] == b"\0\0", "torch.save did not end with a bare zip end record"
        self._emit(bytes(self.held[:-EOCD]) + record[:-2] + COMMENT.to_bytes(2, "little"))
        self._emit(MARK + self.sha.hexdigest().encode())
        if self.error is not None:
            raise self.error
        return self.sha.hexdigest()


def _write_temporary(path, fill):
    """Create a temporary file beside `path`, let `fill(handle)` write it, flush it to the disk. Returns (its path, result)."""
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
        raise explain(error, path) from error if isinstance(error, OSError) else error


def stage_torch(path, payload):
    """Write `payload` under a temporary name beside `path`. Returns (temporary path, SHA-256 hex of the whole file)."""
    def fill(handle):
        out = HashedFile(handle)
        torch.save(payload, out)
        return out.finish()
    return _write_temporary(path, fill)


def commit(temporary, path):
    """Give a finished temporary file its name: from here on a crash finds the new file, before it the old one."""
    try:
        tries = 6 if os.name == "nt" else 1  # Windows: somebody may just be reading the old file
        for attempt in range(tries):
            try:
                os.replace(temporary, path)
                break
            except PermissionError:
                if attempt == tries - 1:
                    raise
                time.sleep(0.2)
        sync_folder(Path(path).parent)
    except OSError as error:
        raise explain(error, path) from error


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


def _put(path, temporary):
    try:
        commit(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_torch(path, payload):
    """Save a dict of tensors and plain values; `path` holds the old file or the new one at every moment.

    Returns the SHA-256 (hex) of the whole file, as `sha256sum` would print it. Raises UserError 7 (disk full) or 2.
    """
    temporary, digest = stage_torch(path, payload)
    _put(path, temporary)
    return digest


def _bad(path, why, code=3):
    return CheckpointError(f"存点不能用：{path}：{why}", code)


def open_regular(path):
    """Open a plain file for reading; a pipe or a device would block for ever. Raises CheckpointError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _bad(path, "不是普通文件")
        return open(path, "rb")
    except FileNotFoundError:
        raise CheckpointError(f"找不到存点：{path}") from None
    except OSError as error:
        raise _bad(path, f"打不开（{error.strerror}）") from error


def _check_digest(file, path):
    """Compare an open file with the digest in its comment. Returns the SHA-256 (hex) of the whole file."""
    size = os.fstat(file.fileno()).st_size
    if size < EOCD + COMMENT:
        raise _bad(path, "文件不完整")
    file.seek(size - COMMENT - EOCD)
    end = file.read()
    record, comment = end[:EOCD], end[EOCD:]
    if not record.startswith(b"PK\5\6") or record[-2:] != COMMENT.to_bytes(2, "little") or not comment.startswith(MARK):
        raise _bad(path, "没有校验码，文件被截断、被改动，或不是本项目写的")
    file.seek(0)
    sha, left = hashlib.sha256(), size - COMMENT
    while left:
        chunk = file.read(min(4 * CHUNK, left))
        if not chunk:
            raise _bad(path, "文件在读取时变短了")
        sha.update(chunk)
        left -= len(chunk)
    if MARK + sha.hexdigest().encode() != comment:
        raise _bad(path, "校验码不符，文件已损坏")
    sha.update(comment)
    return sha.hexdigest()


def _check_archive(file, path):
    """Refuse archives that unpack to more than they hold, or whose pickle asks for anything but tensors and plain values."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries, size = archive.infolist(), os.fstat(file.fileno()).st_size
            pickles = [e for e in entries if e.filename.endswith("/data.pkl")]
            stored = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
            unique = len({e.filename for e in entries}) == len(entries) and len(pickles) == 1
            if not (stored and unique and sum(e.file_size for e in entries) <= size):
                raise _bad(path, "压缩包的结构不对")
            for code, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if code.name in FOREIGN or code.name == "GLOBAL" and not ALLOWED.fullmatch(argument):
                    raise _bad(path, f"含有不允许的对象 {argument or code.name}，拒绝加载")
    except Exception as error:
        raise error if isinstance(error, CheckpointError) else _bad(path, f"读不懂（{type(error).__name__}）") from error


def _check_tensors(value, limit, seen):
    """A tensor may not claim more bytes than the file has (a stride of 0 could make it endless). Walks shared parts once."""
    if id(value) in seen:
        return True
    seen[id(value)] = value  # holding the value keeps its id from being used again
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() <= limit
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, (list, tuple)) or all(_check_tensors(v, limit, seen) for v in value)


def verify_torch(path):
    """Check digest, structure and the names its pickle uses, without loading. Returns the SHA-256 of the whole file."""
    with open_regular(path) as file:
        digest = _check_digest(file, path)
        _check_archive(file, path)
    return digest


def read_torch(path, fields=(), digest=None):
    """Load a file of `write_torch` on the CPU; nothing in it is ever executed.

    `fields`: keys the dict must have, else code 4. `digest`: the whole-file SHA-256 a manifest expects.
    Raises CheckpointError 3 when it is missing, damaged or unsafe.
    """
    with open_regular(path) as file:
        found = _check_digest(file, path)
        if digest not in (None, found):
            raise _bad(path, "和清单里的校验码不符")
        _check_archive(file, path)
        file.seek(0)
        try:
            payload = torch.load(file, map_location="cpu", weights_only=True)
            sane = _check_tensors(payload, os.fstat(file.fileno()).st_size, {})
        except (Exception, MemoryError) as error:  # whatever torch finds, the answer is the same
            raise _bad(path, f"内容无法加载（{type(error).__name__}）") from error
    if not sane:
        raise _bad(path, "张量声称的大小超过文件本身")
    missing = [f for f in fields if f not in payload] if isinstance(payload, dict) else ["字典"]
    if missing:
        raise _bad(path, f"不是这种存点，缺少 {'、'.join(missing)}", 4)
    return payload


def _render(body):
    def text(value):
        return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False).encode()
    return text({**body, "sha256": hashlib.sha256(text(body)).hexdigest()})


def write_json(path, body):
    """Write a dict of plain values atomically, its digest under the key "sha256". Raises UserError 7 or 2."""
    def fill(handle):
        view = memoryview(_render(body))
        while len(view):
            view = view[os.write(handle, view):]
    _put(path, _write_temporary(path, fill)[0])


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
    raise _bad(path, "内容和校验码不符，文件已损坏")

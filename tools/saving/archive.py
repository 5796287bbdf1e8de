"""Archives of tensors that are either whole or refused: a digest inside each file, distrustful reading.

torch does not check the content of its archives: a flipped bit in a weight loads without a word. So every file written
here carries its own SHA-256. A torch archive is a zip file and ends with a free comment; the digest stands there, so
that plain `torch.load` still reads the file. How a file is put on the disk, and JSON with a digest:
tools/saving/atomic.py.
"""
import hashlib
import os
import pickletools
import re
import zipfile

import torch

from tools.saving.atomic import (PREFIX, CheckpointError, bad, commit, explain, open_regular, put, read_json,
                                 sync_folder,  # noqa: F401
                              write_json, write_temporary)

MARK = b"TinySeek sha256:"
COMMENT = len(MARK) + 64  # bytes of the zip comment: the mark and the digest in hex
EOCD = 22  # bytes of the zip end record; its last two hold the length of the comment
CHUNK = 1 << 20  # bytes that are gathered before they go to the disk
# All our own files need; far less than weights_only allows, so that no file can even ask for a huge bytearray.
ALLOWED = re.compile(
    r"(collections (OrderedDict|Counter)|__builtin__ set"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? \w+Storage|torch (Size|device)"
    r"|torch (float|bfloat|int|uint|complex)\d+|torch bool)")
# other ways for a pickle to name an object; torch writes none
FOREIGN = ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")


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


def stage_torch(path, payload, save=torch.save):
    """Write `payload` under a temporary name beside `path`. Returns (temporary path, SHA-256 hex of the whole file)."""
    def fill(handle):
        out = HashedFile(handle)
        save(payload, out)
        return out.finish()
    return write_temporary(path, fill)


def write_torch(path, payload, save=torch.save):
    """Save a dict of tensors and plain values; `path` holds the old file or the new one at every moment.

    save: later.save_later for tensors that are made only then. Returns the SHA-256 (hex) of the whole file, as
    `sha256sum` would print it. Raises UserError 7 (disk full) or 2.
    """
    temporary, digest = stage_torch(path, payload, save)
    put(path, temporary)
    return digest


def _check_digest(file, path):
    """Compare an open file with the digest in its comment. Returns the SHA-256 (hex) of the whole file."""
    size = os.fstat(file.fileno()).st_size
    if size < EOCD + COMMENT:
        raise bad(path, "文件不完整")
    file.seek(size - COMMENT - EOCD)
    end = file.read()
    record, comment = end[:EOCD], end[EOCD:]
    if not record.startswith(b"PK\5\6") or record[-2:] != COMMENT.to_bytes(2, "little") or not comment.startswith(MARK):
        raise bad(path, "没有校验码，文件被截断、被改动，或不是本项目写的")
    file.seek(0)
    sha, left = hashlib.sha256(), size - COMMENT
    while left:
        chunk = file.read(min(4 * CHUNK, left))
        if not chunk:
            raise bad(path, "文件在读取时变短了")
        sha.update(chunk)
        left -= len(chunk)
    if MARK + sha.hexdigest().encode() != comment:
        raise bad(path, "校验码不符，文件已损坏")
    sha.update(comment)
    return sha.hexdigest()


def _check_archive(file, path):
    """Refuse archives that unpack to more than they hold, or whose pickle asks for anything but tensors and plain
    values."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries, size = archive.infolist(), os.fstat(file.fileno()).st_size
            pickles = [e for e in entries if e.filename.endswith("/data.pkl")]
            stored = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
            unique = len({e.filename for e in entries}) == len(entries) and len(pickles) == 1
            if not (stored and unique and sum(e.file_size for e in entries) <= size):
                raise bad(path, "压缩包的结构不对")
            for code, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if code.name in FOREIGN or code.name == "GLOBAL" and not ALLOWED.fullmatch(argument):
                    raise bad(path, f"含有不允许的对象 {argument or code.name}，拒绝加载")
    except Exception as error:
        raise error if isinstance(error, CheckpointError) else bad(path, f"读不懂（{type(error).__name__}）") from error


def _check_tensors(value, limit, seen):
    """A tensor may not claim more bytes than the file has (a stride of 0 could make it endless). Walks shared parts
    once."""
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
            raise bad(path, "和清单里的校验码不符")
        _check_archive(file, path)
        file.seek(0)
        try:
            payload = torch.load(file, map_location="cpu", weights_only=True)
            sane = _check_tensors(payload, os.fstat(file.fileno()).st_size, {})
        except (Exception, MemoryError) as error:  # whatever torch finds, the answer is the same
            raise bad(path, f"内容无法加载（{type(error).__name__}）") from error
    if not sane:
        raise bad(path, "张量声称的大小超过文件本身")
    missing = [f for f in fields if f not in payload] if isinstance(payload, dict) else ["字典"]
    if missing:
        raise bad(path, f"不是这种检查点，缺少 {'、'.join(missing)}", 4)
    return payload

"""Which files, and their lines as bytes: split at line feeds only (U+2028 is no line end), whole or by range."""
import codecs
import gzip
import io
import os
import zlib
from glob import glob, has_magic
from pathlib import Path

from tools.errors import UserError
from tools.reading.containers import COPIES, kind_of
from tools.reading.json_items import TooLong, Unreadable, read_values       # noqa: F401
from tools.reading.table import read_table

MAX_LINE = 64 << 20     # bytes; a longer line is reported, not loaded
PARAGRAPH = 1 << 16     # bytes; a longer paragraph of a .txt file is closed at the next line's end
BOM = b"\xef\xbb\xbf"
WHY = b"\0why:"         # begins a line of our plain copy in which only the reason is left of an item


def expand_paths(spec):
    """A file, a pattern (* ? [ ], ** for all folders below) or a list of them -> sorted list of paths (str), each file
    once, under whatever names and links it is found.

    UserError 2 if something named is missing, not a file, or empty.
    """
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec or [])
    found = set()
    for item in (os.path.expanduser(s) for s in specs):
        hits = glob(item, recursive=True) if has_magic(item) and not Path(item).exists() else [item]
        files = [hit for hit in hits if Path(hit).is_file()]
        if not files:
            raise UserError(f"数据文件{_no_file(item)}：{item}", 2)
        for file in files:
            if Path(file).stat().st_size == 0:
                raise UserError(f"数据文件是空的：{file}", 2)
        found.update(files)
    if not found:
        raise UserError("没有给出数据文件（json_data_path）。", 2)
    plainest = sorted(found, key=lambda path: (len(path), path), reverse=True)
    return sorted({os.path.realpath(path): path for path in plainest}.values())


def _no_file(item):
    """What is there instead."""
    if os.path.isdir(item):
        return "是文件夹，请给出文件或通配符，如 data/*.jsonl"
    if os.path.islink(item):
        return "是断了的链接，它指向的文件不在"
    return "是管道或设备，训练要反复读它，请先存成文件" if os.path.exists(item) else "不存在"


def is_plain_text(path):
    """Do this file's items hold plain text (paragraphs) rather than JSON?"""
    return kind_of(path).form == "paragraphs"


def rangeable(path):
    """Can the file be entered in the middle? Only plain UTF-8, not zipped, whose rows are its lines (or paragraphs)."""
    kind = kind_of(path)
    return kind.form in ("lines", "paragraphs") and not kind.zipped and kind.encoding == "utf-8"


def iter_lines(path, start=0, end=None):
    """(number, bytes) of each line that is not blank and begins in [start, end); number counts all lines, from 1.

    In a .txt file the items are paragraphs, numbered by their first line; a range holds those whose blank line before
    them begins in it. In a JSON array or a table they are its items, numbered by themselves, each as one line of JSON.
    Ranges that touch hand out every item exactly once; a range of a file that is not `rangeable` is a ValueError.
    UserError 2 if the file cannot be read.
    """
    for number, _, line in iter_places(path, start, end):
        yield number, line


def iter_places(path, start=0, end=None):
    """As iter_lines, with the offset at which the item begins: (number, offset, bytes). `read_at` finds it again."""
    try:
        kind = kind_of(path)
        if (start or end is not None) and not rangeable(path):
            raise ValueError("this file can only be read whole")
        with opened(path, kind) as file:
            if kind.form in ("values", "table"):
                rows = read_values(file) if kind.form == "values" else read_table(file, path)
                yield from ((number, 0, row) for number, row in enumerate(rows, 1))
                return
            lines = _lines(file, start)
            found = _paragraphs(lines, start, end) if kind.form == "paragraphs" else _records(lines, end)
            yield from map(_told_why, found) if str(path).endswith(COPIES["lines"]) else found
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"压缩文件损坏或不完整：{path}", 2) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} 按 {kind.encoding} 读到一半读不下去：文件坏了，或混有几种编码。请在编辑器里另存为 UTF-8。", 2) from None
    except OSError as error:
        raise UserError(f"读不了数据文件 {path}：{error.strerror or error}", 2) from None


def opened(path, kind):
    """The file's bytes, unzipped and as UTF-8."""
    file = (gzip.open if kind.zipped else open)(path, "rb")
    return file if kind.encoding == "utf-8" else io.BufferedReader(Recoded(file, kind.encoding), 1 << 20)


class Recoded(io.RawIOBase):
    """A binary file of another encoding, read as UTF-8."""

    def __init__(self, file, encoding):
        self.file, self.decoder, self.rest = file, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self):
        return True

    def readinto(self, space):
        while not self.rest and (piece := self.file.read(1 << 20)):
            self.rest = self.decoder.decode(piece).encode("utf-8", "surrogatepass")
        if not self.rest:
            self.decoder.decode(b"", True)
        count = min(len(space), len(self.rest))
        space[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

    def close(self):
        self.file.close()
        super().close()


def unpacked(path, folder, limit=None):
    """`path` itself, or where it is not `rangeable` a plain copy of its rows in `folder`; rows keep their numbers.

    limit: bytes that are enough. -> (path, whether all rows are there)
    """
    if rangeable(path):
        return str(path), True
    plain = is_plain_text(path)
    target = Path(folder) / f"{len(os.listdir(folder))}_{Path(path).name}{COPIES['paragraphs' if plain else 'lines']}"
    with open(target, "wb") as out:
        at = 1
        for number, raw in iter_lines(path):
            if limit is not None and out.tell() > limit:
                return str(target), False
            if isinstance(raw, Unreadable):
                raw = WHY + raw.reason.encode()
            out.write(b"\n" * (number - at) + raw + b"\n")
            at = number + raw.count(b"\n") + 1
    return str(target), True


def _told_why(item):
    """An item of our plain copy; what could not be used stands there as its reason."""
    number, offset, line = item
    if line.startswith(WHY):
        line = Unreadable(line)
        line.reason = line[len(WHY):].decode()
    return number, offset, line


def _lines(file, start):
    """(offset, number, line without its end) from the first line that begins at or after `start`."""
    offset = 0
    if start:
        offset = start - 1
        file.seek(offset)
        offset += _rest_of_line(file)
    number = 0
    while line := file.readline(MAX_LINE + 2):
        number += 1
        length = len(line)
        if length > MAX_LINE + 1 or (length == MAX_LINE + 1 and not line.endswith(b"\n")):
            if not line.endswith(b"\n"):
                length += _rest_of_line(file)
            line = TooLong(line[:1000])
        elif offset == 0 and line.startswith(BOM):
            line = line[len(BOM):]
        yield offset, number, line if isinstance(line, TooLong) else line.rstrip(b"\r\n")
        offset += length


def _rest_of_line(file):
    """Read on past the next line feed, in pieces. -> bytes read"""
    count = 0
    while piece := file.readline(1 << 20):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def _records(lines, end):
    for offset, number, line in lines:
        if end is not None and offset >= end:
            return
        if isinstance(line, TooLong) or line.strip():
            yield number, offset, line


def _paragraphs(lines, start, end):
    """Lines joined up to a blank one. Who owns the blank line owns the paragraph after it; the first is range 0's."""
    owned, first, buffer, size = start == 0, (0, 0), [], 0
    for offset, number, line in lines:
        blank = not line.strip()
        if buffer and (blank or size > PARAGRAPH or isinstance(line, TooLong)):
            yield *first, b"\n".join(buffer)
            buffer, size = [], 0
        if end is not None and offset >= end and (blank or not owned):
            return
        if blank:
            owned = True
        elif not owned:
            continue
        elif isinstance(line, TooLong):
            yield number, offset, line
        else:
            first = first if buffer else (number, offset)
            buffer.append(line)
            size += len(line)
    if buffer:
        yield *first, b"\n".join(buffer)


def read_at(file, offset, plain_text=False):
    """The bytes of the one item that iter_places found at `offset`. file: the same plain file, opened "rb"."""
    file.seek(offset)
    parts, size = [], 0
    while line := file.readline(MAX_LINE + 2):
        if offset == 0 and not parts:
            line = line.removeprefix(BOM)
        if not plain_text:
            return line.rstrip(b"\r\n")
        if not line.strip() or size > PARAGRAPH:
            break
        parts.append(line.rstrip(b"\r\n"))
        size += len(parts[-1])
    return b"\n".join(parts)

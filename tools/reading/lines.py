"""Which files, and their lines as bytes: split at line feeds only (U+2028 in a string is no line end), whole or by range."""
import gzip
import os
import zlib
from glob import glob, has_magic
from pathlib import Path

from tools.errors import UserError

MAX_LINE = 64 << 20     # bytes; a longer line is reported, not loaded
PARAGRAPH = 1 << 16     # bytes; a longer paragraph of a .txt file is closed at the next line's end
BOM = b"\xef\xbb\xbf"


class TooLong(bytes):
    """The first bytes of a line beyond MAX_LINE."""


def expand_paths(spec):
    """A file, a pattern (* ? [ ], ** for all folders below) or a list of them -> sorted list of paths (str), each once.

    UserError 2 if something named is missing, not a file, or empty.
    """
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec or [])
    found = set()
    for item in (os.path.expanduser(s) for s in specs):
        hits = glob(item, recursive=True) if has_magic(item) and not Path(item).exists() else [item]
        files = [hit for hit in hits if Path(hit).is_file()]
        if not files:
            what = "是文件夹，请给出文件或通配符，如 data/*.jsonl" if Path(item).is_dir() else "不存在"
            raise UserError(f"数据文件{what}：{item}", 2)
        for file in files:
            if Path(file).stat().st_size == 0:
                raise UserError(f"数据文件是空的：{file}", 2)
        found.update(files)
    if not found:
        raise UserError("没有给出数据文件（json_data_path）。", 2)
    return sorted(found)


def is_plain_text(path):
    """Is this a .txt file (paragraphs) rather than JSON lines?"""
    return str(path).lower().endswith((".txt", ".txt.gz"))


def iter_lines(path, start=0, end=None):
    """(number, bytes) of each line that is not blank and begins in [start, end); number counts all lines, from 1 at `start`.

    In a .txt file the items are paragraphs, numbered by their first line; a range holds those whose blank line before them
    begins in it. Ranges that touch hand out every item exactly once. A range of a .gz file is a ValueError (it cannot be
    entered in the middle). UserError 2 if the file cannot be read.
    """
    for number, _, line in iter_places(path, start, end):
        yield number, line


def iter_places(path, start=0, end=None):
    """As iter_lines, with the byte offset at which the item begins: (number, offset, bytes). `read_at` finds it again."""
    zipped = str(path).lower().endswith(".gz")
    if zipped and (start or end is not None):
        raise ValueError("a .gz file can only be read whole")
    try:
        with (gzip.open if zipped else open)(path, "rb") as file:
            lines = _lines(file, start)
            yield from _paragraphs(lines, start, end) if is_plain_text(path) else _records(lines, end)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"压缩文件损坏或不完整：{path}", 2) from None
    except OSError as error:
        raise UserError(f"读不了数据文件 {path}：{error.strerror or error}", 2) from None


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
    """Lines joined up to a blank one. Who owns the blank line owns the paragraph after it; the file's first is range 0's."""
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

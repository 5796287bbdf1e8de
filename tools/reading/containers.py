"""What a data file really is, told by its first bytes and not by its name: how it is packed, encoded and laid out."""
import csv
import functools
import gzip
import io
import json
import os
import re
import zipfile
import zlib
from collections import namedtuple

from tools.errors import UserError
from tools.reading.json_items import first_value, rows_in
from tools.reading.turns import ANSWERS, QUESTIONS

HEAD = 256 << 10        # bytes looked at
LONGEST = 4 << 20       # of a first line
LINES = 20
COMMONEST = set("的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
                "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第问答，。、：？！")
COPIES = {"lines": ".tinyseek-rows", "paragraphs": ".tinyseek-paragraphs"}      # our plain copies: a row stays a row
Kind = namedtuple("Kind", "form zipped encoding")       # form: lines paragraphs values table

_HUB = "装上 datasets（python -m pip install datasets）后写 --json_data_path hf:{}"
_UNPACK = "先解开，再用里面的文件："
_PYTHON = "python -c \"import %s,shutil; shutil.copyfileobj(%s.open('{}'), open('data.jsonl','wb'))\""
# (where, bytes, what it is, the cure; {} is the file)
MAGIC = [
    (0, b"PAR1", " Parquet 文件", _HUB),
    (0, b"ARROW1", " Arrow 文件", _HUB),
    (0, b"\xff\xff\xff\xff", " Arrow 文件", _HUB.format("它所在的文件夹")),
    (0, b"SQLite format 3\0", " SQLite 数据库", "先导出成 CSV：sqlite3 -header -csv {} \"select * from 表名\" > data.csv"),
    (0, b"\xd0\xcf\x11\xe0", "旧版 Office 文件（xls、doc）", "用 Excel 或 WPS 打开，另存为“CSV UTF-8”（文档另存为 .txt）"),
    (0, b"%PDF", " PDF", "先抽出文字，存成 .txt：pdftotext {} data.txt"),
    (0, b"Rar!", "RAR 压缩包", _UNPACK + "unrar x {}"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z 压缩包", _UNPACK + "7z x {}"),
    (0, b"\xfd7zXZ\0", "xz 压缩文件", _UNPACK + _PYTHON % ("lzma", "lzma")),
    (0, b"BZh", "bz2 压缩文件", _UNPACK + _PYTHON % ("bz2", "bz2")),
    (0, b"\x28\xb5\x2f\xfd", "zstd 压缩文件", _UNPACK + "zstd -d {} -o data.jsonl"),
    (0, b"\x04\x22\x4d\x18", "lz4 压缩文件", _UNPACK + "lz4 -d {} data.jsonl"),
    (257, b"ustar", "tar 包", _UNPACK + "tar xf {}"),
    (0, b"\x93NUMPY", " NumPy 数组", "它没有文字；请用原来的文本文件"),
    (0, b"\x89HDF", " HDF5 文件", "先用 pandas 读出来，存成 JSONL 或 CSV"),
    (0, b"\x89PNG", "图片", "这里只能学文字"), (0, b"\xff\xd8\xff", "图片", "这里只能学文字"),
    (0, b"version https://git-lfs", " Git LFS 的指针，不是数据本身", "在那个仓库里运行 git lfs pull，或从网页重新下载"),
]
PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95|[\]}(cX\x8c])")
HTML = re.compile(rb"\s*<(?:!doctype html|html|head|body)[\s>]", re.I)


def kind_of(path):
    """-> Kind. UserError 2 where the file cannot be read, or is of a kind that cannot, with the cure."""
    try:
        stat = os.stat(path)
        return _kind_of(os.fspath(path), stat.st_size, stat.st_mtime_ns)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"压缩文件损坏或不完整：{path}", 2) from None
    except OSError as error:
        raise UserError(f"读不了数据文件 {path}：{error.strerror or error}", 2) from None


@functools.lru_cache(4096)
def _kind_of(path, size, _):
    for form, ending in COPIES.items():
        if path.endswith(ending):
            return Kind(form, False, "utf-8")
    with open(path, "rb") as file:
        head = file.read(HEAD)
    zipped = head[:2] == b"\x1f\x8b"
    if path.lower().endswith(".gz") and not zipped:
        raise UserError(f"{path} 的名字是 .gz，内容却不是 gzip 压缩文件：下载坏了，或只是改了名字。", 2)
    if zipped:
        with gzip.open(path) as file:
            head = file.read(HEAD)
    if b"\n" not in head and len(head) == HEAD:
        with (gzip.open if zipped else open)(path, "rb") as file:
            head = file.read(LONGEST)
    _refuse(path, head)
    encoding = _encoding(path, head, zipped, size)
    text = head.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    name = path.lower().removesuffix(".gz")
    return Kind(_form(name, text, len(head) < HEAD), zipped, encoding)


def _refuse(path, head):
    name = os.path.basename(path)
    for at, magic, what, cure in MAGIC:
        if head[at:at + len(magic)] == magic:
            raise UserError(f"{path} 是{what}，不能直接读。{cure.replace('{}', name)}", 2)
    if head[:4] == b"PK\x03\x04":
        raise UserError(f"{path} 是{_inside(path)}", 2)
    if PICKLE.match(head):
        raise UserError(f"{path} 是 Python 的 pickle 文件，打开它等于运行它，所以不读。请用原来的文本，或自己转成 JSONL。", 2)
    if HTML.match(head):
        raise UserError(f"{path} 是网页，不是数据：多半下载时存下了登录页或说明页，请从发布页的下载按钮重新下载。", 2)


def _inside(path):
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError):
        return "不完整的 zip 压缩包，请重新下载。"
    if any(name.startswith("xl/") for name in names):
        return "Excel 表格（xlsx）。请用 Excel 或 WPS 打开，另存为“CSV UTF-8”，再用那个 .csv。"
    if any(name.startswith("word/") for name in names):
        return "Word 文档（docx）。请另存为 .txt（UTF-8）再用。"
    return f"zip 压缩包，里面有 {'、'.join(names[:3])}。先解开，再用里面的文件：python -m zipfile -e {os.path.basename(path)} ."


# ---- encoding ----

def _encoding(path, head, zipped, size):
    for name in ("utf-32", "utf-16"):
        if head.startswith(("\ufeff".encode(name + "-le"), "\ufeff".encode(name + "-be"))):
            return name
    if wide := _wide(head):
        return wide
    sample = head
    if head.isascii() and len(head) == HEAD and not zipped:              # English first, the rest further down
        with open(path, "rb") as file:
            for at in [size * part // 9 for part in range(1, 9)] + [size - (1 << 14)]:
                file.seek(at)
                file.readline(LONGEST)
                sample += b"\n" + b"".join(file.readlines(1 << 14))
    lines = sample.split(b"\n")
    lines = [line for line in (lines if len(head) < HEAD else lines[:-1] or lines) if not line.isascii()]
    good = sum(_is_utf8(line) for line in lines)
    if not lines or 10 * good > len(lines) - good:
        return "utf-8"
    if _is_chinese(b"\n".join(lines)) and _decodes(path, zipped):
        return "gb18030"
    if 2 * (len(lines) - good) > max(4, sample.count(b"\n")):
        raise UserError(f"{path} 的编码认不出来：不是 UTF-8、UTF-16，也不是 GBK（GB18030）。请在编辑器里另存为 UTF-8；知道原编码（如 big5）时："
                        f"python -c \"t=open('{os.path.basename(path)}',encoding='big5').read(); "
                        "open('data.jsonl','w',encoding='utf-8').write(t)\"", 2)
    return "utf-8"


def _wide(head):
    """UTF-16 without a mark: every second byte of its ASCII characters is 0."""
    odd, even = head[1::2].count(0), head[::2].count(0)
    if 20 * (odd + even) < len(head) or max(odd, even) < 9 * min(odd, even):
        return None
    name = "utf-16-le" if odd > even else "utf-16-be"
    try:
        head[:len(head) // 2 * 2 - 2].decode(name)
    except UnicodeDecodeError:
        return None
    return name


def _is_utf8(line):
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > 0 and error.reason == "unexpected end of data" and not line[:error.start].isascii()
    return True


def _is_chinese(raw):
    """Whether GBK makes everyday Chinese of these bytes: most characters among the 3,755 of its first level and the
    punctuation, and the commonest of all among them; Korean and Japanese bytes make rare ones."""
    text = [c for c in raw.decode("gb18030", errors="replace") if not c.isascii()]
    other = [c.encode("gb18030") for c in text]
    first = sum(len(c) == 2 and (0xB0 <= c[0] <= 0xD7 and c[1] > 0xA0 or c[0] in (0xA1, 0xA3)) for c in other)
    return first > 0.7 * len(other) and sum(c in COMMONEST for c in text) > 0.1 * len(text)


def _decodes(path, zipped):
    """Whether the whole file is GB18030 without a flaw."""
    try:
        with (gzip.open if zipped else open)(path, "rt", encoding="gb18030", newline="") as file:
            while file.read(1 << 20):
                pass
        return True
    except UnicodeDecodeError:
        return False


# ---- layout ----

def _form(name, text, complete):
    """lines: one JSON value a line · values: several in a row or in an array · table: CSV · paragraphs: text."""
    text = text.lstrip("\ufeff")
    plain = name.endswith((".txt", ".text", ".md"))
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        form = _json_form(text, complete)
        if not plain or (_all_json(text, complete) if form == "lines" else first_value(text) is not None):
            return form
    if plain:
        return "paragraphs"
    if name.endswith((".csv", ".tsv")) or _has_header(text):
        return "table"
    return "lines"


def _first_lines(text, complete):
    lines = text.split("\n")
    return [line for line in (lines if complete else lines[:-1]) if line.strip()][:LINES]


def _all_json(text, complete):
    return all(isinstance(_parsed(line), dict) for line in _first_lines(text, complete))


def _parsed(line):
    try:
        return json.loads(line.strip().removesuffix(","))
    except (ValueError, RecursionError):
        return None


def _json_form(text, complete):
    lines = _first_lines(text, complete)
    if text.lstrip()[0] == "[":
        return "lines" if len(lines) > 1 and _is_conversation(_parsed(lines[0])) else "values"
    if not any(isinstance(_parsed(line), dict) for line in lines):
        large = not lines or not complete and len(lines[0]) < 200       # an object that began on a line of its own
        return "values" if large or first_value(text) is not None else "lines"
    return "values" if complete and len(lines) == 1 and rows_in(_parsed(lines[0])) is not None else "lines"


def _is_conversation(value):
    """A list that is one row: of strings, or of turns."""
    return isinstance(value, list) and len(value) > 1 and all(
        isinstance(one, str) or isinstance(one, dict) and ("role" in one or "from" in one) for one in value)


def delimiter_of(line):
    return max("\t,;", key=line.count)


def _has_header(text):
    """Whether the first line names columns that we know."""
    line = text.lstrip("\n").partition("\n")[0]
    names = next(csv.reader(io.StringIO(line), delimiter=delimiter_of(line)), [])
    known = {*QUESTIONS, *ANSWERS, "text", "content", "system", "history"}
    short = len(names) > 1 and all(len(name) < 30 for name in names)
    return short and any(name.strip().lower() in known for name in names)

"""Rows of a CSV or TSV file as JSON objects."""
import csv
import io
import json

from tools.errors import UserError
from tools.reading.containers import delimiter_of

csv.field_size_limit(64 << 20)


def read_table(file, path):
    """Generator of one JSON object (bytes) a record; the header names its fields. file: binary, UTF-8."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline(1 << 20)
    reader = csv.reader(_chain(first, text), delimiter=delimiter_of(first), strict=True)
    try:
        names = _names(next(reader, []))
        for record in reader:
            if any(record):
                names += [f"第{i + 1}列" for i in range(len(names), len(record))]
                yield json.dumps(dict(zip(names, record))).encode()
    except csv.Error as error:
        raise UserError(f"{path} 的 CSV 写法不对（第 {reader.line_num} 行：{error}），多半是引号没有成对。", 2) from None


def _chain(first, rest):
    yield first
    yield from rest


def _names(header):
    """Every column has a name of its own."""
    names = []
    for i, name in enumerate(header):
        name = name.strip() or f"第{i + 1}列"
        names.append(name if name not in names else f"{name}_{i + 1}")
    return names

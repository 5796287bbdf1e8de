"""The values of a JSON file that is no JSON lines: an array, pretty-printed objects in a row, a table as an object.

Values are cut out by their brackets: memory holds one at a time, and a fault inside one does not take the rest along.
"""
import json
import re

LIMIT = 64 << 20        # bytes of one value
WHOLE = 256 << 20       # of a file that is one object, which is read as a whole
PIECE = 1 << 20
# a string, a quote that is not closed yet, a bracket, a comma
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.S)
BREAKS = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")|[\r\n]+', re.S)
SPLITS = ("train", "data", "rows", "examples", "items", "instances", "records", "results")
CONVERSATIONS = {"messages", "conversations", "conversation", "history", "turns", "dialogue", "data"}


class Unreadable(bytes):
    """The first bytes of an item that cannot be used whatever it says; `reason` (Chinese)."""
    reason = "读不了"


class TooLong(Unreadable):
    """The first bytes of a line or value beyond the limit."""
    reason = "一行超过 64 MiB"


class Beside(Unreadable):
    """Rows under another name than those that are read."""


class Unfinished(Unreadable):
    """The file ended inside a value."""
    reason = "文件在这里断了（JSON 没有结束），多半没有下载完"


def read_values(file):
    """Generator of the bytes of each row, each on one line. file: binary, UTF-8."""
    start = file.read(PIECE)
    array = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
    pieces = iter(lambda: file.read(PIECE), b"")
    values = _cut(_chain(start, pieces), 1 if array else 0, LIMIT if array else WHOLE)
    if array:
        yield from values
        return
    held = next(values, None)
    following = next(values, None)
    if following is None and held is not None and not isinstance(held, Unreadable):
        yield from _expanded(held)
        return
    for value in (held, following):
        if value is not None:
            yield value
    yield from values


def first_value(text):
    """The first value that stands in this text as an object or list, None if none is complete."""
    raw = text.encode("utf-8", errors="replace")
    value = next(_cut([raw], 1 if raw.lstrip()[:1] == b"[" else 0, LIMIT), None)
    try:
        return None if value is None or isinstance(value, Unreadable) else json.loads(value)
    except (ValueError, RecursionError):
        return None


def _chain(first, rest):
    yield first.removeprefix(b"\xef\xbb\xbf")
    yield from rest


def _cut(pieces, base, limit):
    """base 1: the items of the arrays that stand in the stream; base 0: the values themselves."""
    pieces = iter(pieces)
    buffer, start, at, depth, long, finished = b"", 0, 0, 0, False, False
    while not finished:
        piece = next(pieces, b"")
        finished = not piece
        buffer, at, start = buffer[start:] + piece, at - start, 0
        for token in TOKEN.finditer(buffer, at):
            kind, at = token[0], token.end()
            if kind == b'"' and not finished:                           # the string goes on in the next piece
                at = token.start()
                break
            if kind in b"[{" and kind:
                if depth == 0 and base:
                    yield from _outside(buffer[start:token.start()])
                    start = at
                depth += 1
            elif (kind in b"]}" and depth > 0) or (kind == b"," and depth == base):
                depth -= kind != b","
                if depth == base or (base and depth == 0):
                    end = token.start() if kind == b"," or depth < base else at
                    if kind == b"," or depth < base or not base:
                        yield from _value(buffer[start:end], long)
                        start, long = at, False
        else:
            at = len(buffer)
        if len(buffer) - start > limit and not finished:
            if not long:
                yield TooLong(buffer[start:start + 1000])
            long, start = True, at
            if len(buffer) - at > limit:
                return
    rest = buffer[start:].strip()
    if depth > 0:
        yield from _value(rest, long) if depth == base and base else ()
        yield Unfinished(rest[:1000])
    elif rest:
        yield from _outside(rest)


def _outside(raw):
    """What stands before an array, between two or after one."""
    raw = raw.strip(b" \t\r\n,\xef\xbb\xbf]}")
    if raw:
        yield _one_line(raw)


def _value(raw, long):
    raw = raw.strip(b" \t\r\n,")
    if raw and not long:
        yield _one_line(raw)


def _one_line(raw):
    """Line breaks between tokens are blanks; inside a string, where JSON forbids them, they are written as \\n."""
    if b"\n" not in raw and b"\r" not in raw:
        return raw
    return BREAKS.sub(lambda hit: re.sub(rb"\r?\n|\r", rb"\\n", hit[1]) if hit[1] else b" ", raw)


def _expanded(raw):
    """The rows inside a file that is one object, or the object as the only row."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    rows = rows_in(value)
    if rows is None:
        yield raw
        return
    for row in rows:
        yield json.dumps(row).encode()
    for name, count in _beside(value, rows):
        item = Beside(json.dumps({name: value[name]}).encode()[:1000])
        item.reason = f"同一个文件里的 {name[:40]}（{count} 行）没有读；要用它，请另存成一个文件"
        yield item


def _beside(value, rows):
    """(name, rows) of the other tables in an object of which one was read: {"train": […], "test": […]}."""
    tables = [name for name, one in value.items() if isinstance(one, list) and one
              and all(isinstance(x, (dict, list)) for x in one)]
    read = next((name for name in SPLITS if name in tables and len(value[name]) == len(rows)), None)
    return [(name, len(value[name])) for name in tables if read and name != read]


def rows_in(value):
    """The rows in one object, or None: {"data": […]}, columns as lists, pandas' spellings, {"1": row, "2": row}."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return [dict(zip(value["columns"], one)) for one in value["data"] if isinstance(one, list)]
    lists = {name: one for name, one in value.items() if isinstance(one, list) and one}
    for name in SPLITS:
        if isinstance(value.get(name), list) and all(isinstance(one, (dict, list)) for one in value[name]):
            inner = [one.get("row") if isinstance(one, dict) else None for one in value[name]]      # the hub's answers
            return [row if isinstance(row, dict) else one for row, one in zip(inner, value[name])]
    even = len(lists) == len(value) > 0 and len({len(one) for one in lists.values()}) == 1
    if even and not lists.keys() & CONVERSATIONS:
        if all(isinstance(x, (str, int, float, type(None))) for one in lists.values() for x in one):
            return [dict(zip(lists, one)) for one in zip(*lists.values())]
    inner = list(value.values())
    if len(inner) > 0 and all(isinstance(one, dict) and one for one in inner):
        if all(key.isdigit() for one in inner for key in one):                          # pandas: {column: {"0": value}}
            keys = dict.fromkeys(key for one in inner for key in one)
            return [{name: one.get(key) for name, one in value.items()} for key in keys]
        if not value.keys() & {"chat", "prompt", "chosen"}:
            return inner
    return None

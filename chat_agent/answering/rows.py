"""A conversation and the reply to it -> the row of data that teaches it; what training would refuse is no row."""
import json

from tools.formats import parse_line
from tools.reading.acting import written


def row_of(messages, reply):
    """messages: as tools/template.py renders them; reply: a message in the shape that files have -> (row, None) or
    (None, why not (Chinese))."""
    row = written(messages)
    row["messages"] = [*row["messages"], {name: value for name, value in reply.items() if value}]
    row["messages"][-1].setdefault("content", "")
    read = parse_line(json.dumps(row).encode())
    if isinstance(read, str):
        return None, read
    return written(read.messages), None


def without_repeats(rows):
    """Each different row once, in order."""
    return list({json.dumps(row, ensure_ascii=False): row for row in rows}.values())

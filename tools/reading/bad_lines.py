"""Counting the lines of a data file that cannot be used, and what the good ones say that no model will see."""
import json
import time
from pathlib import Path

from tools.errors import UserError
from tools.reading.row import is_about

QUOTE = 200             # characters of a bad line that are quoted
LOGGED = 10_000         # bad lines beyond these are counted but not quoted: a wrong file must not fill the disk
FREE, MOST = 10, 1 / 3  # so many bad lines are always forgiven, unless they are more than this share of the file
NAMES = 40              # different fields that are counted by name
OTHERS = "其余字段"


def too_many(bad, total, max_bad_share):
    """Whether `bad` of `total` rows are too many: above max(10, max_bad_share), in a small file above a third."""
    return bad > max(min(FREE, MOST * total), max_bad_share * total) or 0 < total <= bad


def field_names(raw):
    """The fields of an object of no known shape, as a remark."""
    try:
        return "有字段 " + "、".join(list(json.loads(raw))[:8])
    except (ValueError, TypeError, RecursionError):
        return ""


def count_dropped(table, row):
    """Add to table {what: [rows, characters]} what one row says that no model sees."""
    for name, size in row.dropped.items():
        entry = table.setdefault(name if name in table or len(table) < NAMES else OTHERS, [0, 0])
        entry[0] += 1
        entry[1] += size


def add_dropped(table, more):
    for name, (rows, size) in more.items():
        entry = table.setdefault(name if name in table or len(table) < NAMES else OTHERS, [0, 0])
        entry[0] += rows
        entry[1] += size
    return table


def dropped_text(table):
    """{what: [rows, characters]} -> Chinese: what speaks, and what only describes.

    {"tools": [9, 80], "id": [9, 40]} -> ("tools 9 行（80 字）", "id")
    """
    said = {name: entry for name, entry in table.items() if entry[1] and not is_about(name)}
    order = sorted(said, key=lambda name: -said[name][1])
    listed = "、".join(f"{name} {said[name][0]:,} 行（{said[name][1]:,} 字）" for name in order)
    return listed, "、".join(name for name in table if name not in said)


class BadLines:
    """Counts bad lines, quotes them in log_path (None: nowhere), and says stop when there are too many."""

    def __init__(self, log_path=None, max_bad_share=0.001):
        self.log_path, self.max_bad_share, self.count = log_path and Path(log_path), max_bad_share, 0
        self.first = None

    def add(self, file, line, reason, raw=b""):
        """line counts from 1; raw: the line's bytes, or their start."""
        self.count += 1
        if self.first is None:
            named = field_names(bytes(raw)) if "字段" in reason else ""
            self.first = (str(file), line, f"{reason}；{named}" if named else reason)
        if self.log_path is None or self.count > LOGGED:
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        start = bytes(raw[:4 * QUOTE]).decode("utf-8", errors="replace")[:QUOTE]
        entry = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "file": str(file), "line": line, "reason": reason,
                 "start": start}
        with open(self.log_path, "a", encoding="utf-8", newline="\n") as f:
            f.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, total):
        """total: lines seen, bad ones included. UserError 8 where they are `too_many`."""
        if too_many(self.count, total, self.max_bad_share):
            file, line, reason = self.first
            where = f"，清单在 {self.log_path}" if self.log_path else ""
            cure = "请先修好数据"
            if 2 * self.count <= total:
                cure += f"，或去掉坏行：python tools/check_data.py {file} --output clean.jsonl，或调大 max_bad_share"
            raise UserError(f"坏行太多：{total} 行里有 {self.count} 行不能用，第一处是 {file} 第 {line} 行（{reason}）{where}。{cure}。", 8)

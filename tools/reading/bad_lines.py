"""Counting and quoting the lines of a data file that cannot be used."""
import json
import time
from pathlib import Path

from tools.errors import UserError

QUOTE = 200             # characters of a bad line that are quoted
LOGGED = 10_000         # bad lines beyond these are counted but not quoted: a file of another kind must not fill the disk


class BadLines:
    """Counts bad lines, quotes them in log_path (None: nowhere), and says stop when there are too many."""

    def __init__(self, log_path=None, max_bad_share=0.001):
        self.log_path, self.max_bad_share, self.count = log_path and Path(log_path), max_bad_share, 0
        self.first = None

    def add(self, file, line, reason, raw=b""):
        """line counts from 1; raw: the line's bytes, or their start."""
        self.count += 1
        self.first = self.first or (str(file), line, reason)
        if self.log_path is None or self.count > LOGGED:
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        start = bytes(raw[:4 * QUOTE]).decode("utf-8", errors="replace")[:QUOTE]
        entry = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "file": str(file), "line": line, "reason": reason, "start": start}
        with open(self.log_path, "a", encoding="utf-8", newline="\n") as f:
            f.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, total):
        """total: lines seen, bad ones included. UserError 8 above max(10 lines, max_bad_share), or if no good line is left."""
        if self.count > max(10, self.max_bad_share * total) or 0 < total <= self.count:
            file, line, reason = self.first
            where = f"，清单在 {self.log_path}" if self.log_path else ""
            raise UserError(f"坏行太多：{total} 行里有 {self.count} 行不能用，第一处是 {file} 第 {line} 行（{reason}）{where}。"
                            "请先修好数据，或调大 max_bad_share。", 8)

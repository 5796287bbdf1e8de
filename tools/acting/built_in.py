"""The tools that are always there: calculator, calendar, units, and a look-up in a file that the user names.

Each is a function of text and numbers that gives text; Wrong says, in words, why it could not.
"""
import datetime
import json
import re
from fractions import Fraction
from pathlib import Path

from tools.acting.calculator import Wrong, calculate, written
from tools.errors import UserError

WEEKDAYS = "一二三四五六日"
LARGEST_FILE = 64 << 20         # bytes of a file to look things up in
FOUND = 3                       # rows that a look-up gives at most
DATE = re.compile(r"\s*(\d{1,4})\s*[-年/.]\s*(\d{1,2})\s*[-月/.]\s*(\d{1,2})\s*[日号]?\s*")
# unit -> (what it measures, how many of the first unit of that measure it is)
UNITS = {name: (kind, Fraction(size)) for kind, sizes in {
    "长度": {"米": "1", "m": "1", "千米": "1000", "公里": "1000", "km": "1000", "厘米": "0.01", "cm": "0.01", "毫米": "0.001",
           "mm": "0.001", "分米": "0.1", "里": "500", "尺": "1/3", "寸": "1/30", "英里": "1609.344", "英尺": "0.3048",
           "英寸": "0.0254"},
    "重量": {"千克": "1", "公斤": "1", "kg": "1", "克": "0.001", "g": "0.001", "斤": "0.5", "两": "0.05", "吨": "1000",
           "毫克": "0.000001", "磅": "0.45359237", "盎司": "0.028349523125"},
    "面积": {"平方米": "1", "公顷": "10000", "亩": "2000/3", "平方公里": "1000000", "平方千米": "1000000",
           "平方厘米": "0.0001"},
    "体积": {"升": "1", "L": "1", "毫升": "0.001", "mL": "0.001", "立方米": "1000", "立方厘米": "0.001"},
    "时间": {"秒": "1", "分钟": "60", "分": "60", "小时": "3600", "天": "86400", "周": "604800", "星期": "604800"},
    "速度": {"米/秒": "1", "公里/小时": "5/18", "千米/小时": "5/18"}}.items() for name, size in sizes.items()}
DEGREES = {"摄氏度": (Fraction(1), Fraction(0)), "℃": (Fraction(1), Fraction(0)),
           "华氏度": (Fraction(5, 9), Fraction(-160, 9)), "℉": (Fraction(5, 9), Fraction(-160, 9)),
           "开尔文": (Fraction(1), Fraction("-273.15"))}


def day(text):
    found = DATE.fullmatch(text)
    try:
        return datetime.date(*map(int, found.groups()))
    except (AttributeError, ValueError):
        raise Wrong(f"{text[:20]} 不是日期，应写成 2025-03-01") from None


def calendar(date, until=None, days=None):
    """date alone: its weekday. until: the days from one to the other. days: the date so many days later."""
    start = day(date)
    if until is not None:
        return f"{(day(until) - start).days} 天"
    try:
        start += datetime.timedelta(days or 0)
    except OverflowError:
        raise Wrong("超出了 1 到 9999 年") from None
    return f"{start.isoformat()} 星期{WEEKDAYS[start.weekday()]}"


def convert(value, source, target):
    number = Fraction(str(value))
    if source in DEGREES and target in DEGREES:
        (one, zero), (other, there) = DEGREES[source], DEGREES[target]
        return f"{written((number * one + zero - there) / other)} {target}"
    for name in (source, target):
        if name not in UNITS:
            raise Wrong(f"没有 {name[:10]} 这个单位")
    (kind, one), (other_kind, other) = UNITS[source], UNITS[target]
    if kind != other_kind:
        raise Wrong(f"{source} 是{kind}，{target} 是{other_kind}，不能换算")
    return f"{written(number * one / other)} {target}"


class LookUp:
    """Rows of a JSONL or text file; `look_up` gives those that have most of the words asked for."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            if self.path.stat().st_size > LARGEST_FILE:
                raise UserError(f"{path} 太大，查找用的文件最多 {LARGEST_FILE >> 20} MiB。")
            text = self.path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise UserError(f"读不了 {path}（{error.strerror}）。") from None
        self.rows = [self._row(line) for line in text.splitlines() if line.strip()]

    @staticmethod
    def _row(line):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return line.strip()
        return "，".join(f"{k}：{v}" for k, v in row.items()) if isinstance(row, dict) else line.strip()

    def look_up(self, query):
        words = [word for word in re.split(r"[\s，。、？?！!：:；;]+", query.lower()) if word]
        scored = [(sum(_score(word, row.lower()) for word in words), -i) for i, row in enumerate(self.rows)]
        best = sorted((one for one in scored if one[0] >= 1), reverse=True)[:FOUND]
        if not best:
            raise Wrong(f"没有查到 {query[:40]}")
        top = best[0][0]
        return "\n".join(self.rows[-i] for score, i in best if score == top)


def _score(word, row):
    """1 for the whole word, less for a part of it: the share of its pairs of characters."""
    if word in row:
        return 1 + len(word) / 100
    pairs = {word[i:i + 2] for i in range(len(word) - 1)}
    return sum(pair in row for pair in pairs) / len(pairs) if pairs else 0


# name -> function; what they are called with stands in tools/demo/offered.py
BUILT_IN = {"calculate": calculate, "calendar": calendar, "convert": convert}

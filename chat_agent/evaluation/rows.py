"""Data files as evaluation wants them: rows to score, questions with an expected reply, multiple choice.

Every reader takes `every` (only rows whose zero-based number over all files is divisible by it, the rule by which
training holds rows out) and `bad` (BadLines): unusable lines are counted there, too many are UserError 8.
"""
import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tools import formats
from tools.errors import UserError
from tools.reading.held_out import SHARE, held_every
from tools.reading.lines import expand_paths, is_plain_text, iter_lines

# What a row may say about its grading (`tools.demo.outside.right`): endings, words it may contain, does it want an
# admission.
GRADING = {"accept": list, "hints": list, "outside": bool}
OPTION = re.compile("[A-Z]").fullmatch


@dataclass
class Choice:
    """One multiple-choice question; `answer` is the index of the right option."""
    question: str
    options: list
    answer: int
    subject: str = ""


def left_out(paths, share, text_field=None):
    """`every` of the rows that training left out of these files with this `eval_share`; 0 = it left none out."""
    few = islice(formats.read_rows(paths, text_field, formats.BadLines()), round(2 / SHARE))       # more are many
    return held_every(share, sum(1 for _ in few))


def scored_rows(data, every=1, text_field=None, bad=None):
    """Path, pattern, list of paths, or rows at hand (Row or a data line's dict) -> list of formats.Row."""
    if not _is_paths(data):
        return [_row_at_hand(row) for row in list(data)[::every]]
    return _collect(data, every, bad, lambda raw, plain: formats.parse_line(raw, text_field, plain))


def question_rows(data, every=1, bad=None, text_field=None):
    """-> list of {"conversations": messages, "task": name}: the last message is the expected reply. Without a `task`
    field the file's name is the task. A row may say what else is right: see `GRADING`."""
    if not _is_paths(data):
        return [_question(json.dumps(row).encode(), "对话") for row in list(data)[::every]]
    return [row for path in expand_paths(data) for row in
            _collect([path], every, bad, lambda raw, plain: _question(raw, Path(path).stem, text_field))]


def choice_rows(data, every=1, bad=None):
    """JSONL or CSV with question,A,B,C,D,answer,subject -> list of Choice."""
    if not _is_paths(data):
        return [_choice(row) for row in list(data)[::every]]
    return _collect(data, every, bad, _choice_line)


def looks_like(path):
    """choice | question | rows: which evaluation a file is made for, from its first line that is a JSON object."""
    if str(path).lower().endswith(".csv"):
        return "choice"
    if is_plain_text(path):
        return "rows"
    for _, raw in iter_lines(path):
        try:
            row = json.loads(bytes(raw).decode("utf-8-sig"))
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            if {"question", "A", "B", "answer"} <= _small(row).keys():
                return "choice"
            return "question" if "task" in row and ("conversations" in row or "messages" in row) else "rows"
    return "rows"


def _is_paths(data):
    return isinstance(data, (str, Path)) or (isinstance(data, (list, tuple)) and bool(data)
                                             and isinstance(data[0], (str, Path)))


def _collect(data, every, bad, parse):
    """All that `parse(raw line, is it plain text)` understands; it returns a str (the reason) for what it does not."""
    bad = bad or formats.BadLines()
    counted, seen, offset, rows = bad.count, 0, 0, []
    paths = expand_paths(data)
    for path in paths:
        plain, number = is_plain_text(path), 0
        for number, raw in iter_lines(path):
            if (offset + number - 1) % every:
                continue
            seen += 1
            row = parse(raw, plain)
            if isinstance(row, str):
                bad.add(path, number, row, raw)
            else:
                rows.append(row)
        offset += number
    if bad.count > counted:
        bad.check(seen)
    if not rows:
        raise UserError(f"{paths[0]} 里没有一条可用的数据" + (f"（只看了每 {every} 行的第一行）。" if every > 1 else "。"))
    return rows


def _row_at_hand(row):
    if isinstance(row, formats.Row):
        return row
    found = formats.parse_line(json.dumps(row).encode())
    if isinstance(found, str):
        raise ValueError(f"row cannot be scored: {found}")
    return found


def _question(raw, task, text_field=None):
    row = formats.parse_line(raw, text_field)
    if isinstance(row, str):
        return row
    if row.kind != "dialogue" or row.messages[-1]["role"] != "assistant" or len(row.messages) < 2:
        return "不是以助手的回答结尾的对话"
    whole = json.loads(bytes(raw).decode("utf-8-sig").strip().removesuffix(","))
    given = whole.get("task") if isinstance(whole, dict) else None
    found = {"conversations": row.messages, "task": given if isinstance(given, str) and given else task}
    return found | {key: whole[key] for key, wanted in GRADING.items() if isinstance(whole.get(key), wanted)}


def _choice_line(raw, plain):
    if isinstance(raw, formats.Unreadable):
        return raw.reason
    try:
        row = json.loads(bytes(raw).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return "不是合法的 JSON"
    try:
        return _choice(row)
    except ValueError as error:
        return str(error)


def _text(value):
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _small(row):
    """A row whose fields' names are in small letters, the options' aside; some collections write Question and
    Answer."""
    if not isinstance(row, dict):
        return row
    return {k.lower() if isinstance(k, str) and len(k) > 1 else k: v for k, v in row.items()}


def _choice(row):
    """A dict (or a Choice) -> Choice; ValueError says in Chinese what is wrong."""
    if isinstance(row, Choice):
        return row
    row = _small(row)
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise ValueError("没有 question")
    options = {k: _text(row[k]) for k in sorted(k for k in row if isinstance(k, str) and OPTION(k))
               if row[k] not in (None, "")}
    letters, texts = list(options), list(options.values())
    if len(texts) < 2 or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError("至少要有 A、B 两个选项，都是非空的字符串")
    if any(formats.SURROGATE.search(t) or "\0" in t for t in [row["question"], *texts]):
        raise ValueError("含有 NUL 或孤立的代理字符")
    answer = str(row.get("answer", "")).strip().upper()
    if answer not in letters:
        raise ValueError("answer 应是某个选项的字母")
    return Choice(row["question"].strip(), [t.strip() for t in texts], letters.index(answer),
                  str(row.get("subject") or ""))

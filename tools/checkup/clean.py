"""`check_data --output`: the data without bad rows, repeated ones and other people's marks, in one shape."""
import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tools import formats, template
from tools.checkup.aim import Aim, taken
from tools.checkup.duplicates import Book, find_duplicates
from tools.checkup.faults import KINDS, PATTERNS, ROLE_LINE, excused, row_faults
from tools.checkup.scan import Columns, row_text, scan_files, store
from tools.errors import UserError
from tools.reading.containers import COPIES
from tools.reading.acting import written as as_written
from tools.reading.row import MARKS
from tools.saving.atomic import put, write_temporary

# a mark that takes its role's name along
OPENING = re.compile(
    r"(?:<\|(?:im_start|start_header_id|header_start|im_user|im_assistant|im_system|start)\|>|<start_of_turn>|"
                     r"<beginning_of_sentence>|\]~b\])[ \t]*(?:(?:user|assistant|system|model|ai)\b[ \t]*\n?)?|<s>")
WRITTEN = (MARKS,)         # counted as not learned, but told apart
EMPTY = "去掉标记后没有内容"


def check_target(output, key="--output"):
    """UserError 2 where the file that `key` names cannot be written: nothing is ever overwritten."""
    if os.path.lexists(output):
        raise UserError(f"{output} 已经有了，不会覆盖它。请换一个文件名，或先把它移走。")
    if not str(output).lower().endswith(".jsonl"):
        raise UserError(f"{key} 写的是 JSONL，文件名请以 .jsonl 结尾，而不是 {Path(output).name}。")
    if not Path(output).resolve().parent.is_dir():
        raise UserError(f"{key} 所在的文件夹不存在：{Path(output).resolve().parent}")


def write_clean(paths, output, text_field, aim_of_path, no_duplicates=True, near=True, threshold=0.85):
    """Write `output` -> {"rows": written, "read": rows read, "stripped": rows that lost marks,
    "dropped": {why (Chinese): rows}, "left_out": {field: [rows, characters]} that no stage learns and so is not
    written}."""
    counts = {"rows": 0, "read": 0, "stripped": 0, "dropped": Counter(), "left_out": {}}
    check_target(output)
    with tempfile.TemporaryDirectory(prefix="check_data_", ignore_cleanup_errors=True) as folder:
        good = Path(folder, "good" + COPIES["lines"])
        with open(good, "w", encoding="utf-8", newline="\n") as file:
            for path in paths:
                for line in _good_lines(path, text_field, aim_of_path(path), counts):
                    file.write(line + "\n")
        gone = _repeated(str(good), folder, near, threshold) if no_duplicates and good.stat().st_size else {}
        counts["dropped"] |= Counter(KINDS[kind][0] for kind in gone.values())

        def fill(handle):
            with open(good, "rb") as source, open(handle, "wb", closefd=False) as out:
                for number, line in enumerate(source, 1):
                    if number not in gone:
                        out.write(line)
                        counts["rows"] += 1
        temporary = write_temporary(output, fill)[0]
        if not counts["rows"]:
            os.unlink(temporary)
            raise UserError("去掉坏行和重复之后没有剩下一行，没有写 --output。", 8)
        put(output, temporary)
    return counts


def written(output, counts):
    """Chinese line about what write_clean did."""
    gone = "、".join(f"{why} {count:,} 行" for why, count in counts["dropped"].items()) or "没有去掉一行"
    stripped = f"；{counts['stripped']:,} 行里的别家标记和看不见的字符已删" if counts["stripped"] else ""
    said = formats.dropped_text({name: entry for name, entry in counts["left_out"].items() if name not in WRITTEN})
    left = "".join(f"；没有写进去：{words}" for words in said if words)
    return f"写出 {output}：{counts['rows']:,} 行（读了 {counts['read']:,} 行，去掉：{gone}{stripped}{left}）。"


def _good_lines(path, text_field, aim, counts):
    """Generator of one file's usable rows as lines of JSON."""
    plain = formats.is_plain_text(path)
    for _, raw in formats.iter_lines(path):
        counts["read"] += 1
        row = formats.parse_line(raw, text_field, plain)
        row = taken(row, aim) if aim.stage == "dpo" else row            # elsewhere a pair stays a pair
        if isinstance(row, str):
            counts["dropped"]["坏行"] += 1
            continue
        own = stripped(row)
        why = _unusable(own)
        if why:
            counts["dropped"][why] += 1
        else:
            counts["stripped"] += own != row or MARKS in row.dropped
            formats.count_dropped(counts["left_out"], row)
            yield canonical(own)


def _unusable(row):
    """Why nothing can be learned from a row that reads well (Chinese), or None."""
    line = canonical(row).encode()
    if isinstance(formats.parse_line(line), str):
        return EMPTY
    found = set(row_faults(row, line)) & {"no_words", "same_pair", "forged"}
    return KINDS[found.pop()][0] if found else None


def canonical(row):
    """A Row as one line of JSON in the documented shape of its kind; it reads back as the same Row."""
    if row.kind == "text":
        fields = {"text": template.END.join(row.texts)}
    else:
        fields = as_written(row.messages)
        fields |= {"chosen": row.chosen, "rejected": row.rejected} if row.kind == "preference" else {}
    return json.dumps(fields, ensure_ascii=False)


def stripped(row):
    """The Row without other people's marks, control and invisible characters, and role names that open a turn."""
    if row.kind == "text":
        return replace(row, texts=[text for text in (_without(text, row) for text in row.texts) if text.strip()])
    messages = [{**m, **{name: _without(m[name], row) for name in ("content", "thinking") if m.get(name)}}
                if m["role"] != "tools" else m for m in row.messages]
    pair = {name: _without(getattr(row, name), row)
            for name in ("chosen", "rejected")} if row.kind == "preference" else {}
    return replace(row, messages=messages, **pair)


def _without(text, row):
    had = text
    for kind in ("forged", "control", "invisible"):
        if not excused(kind, row_text(row)):
            text = PATTERNS[kind].sub("", OPENING.sub("", text) if kind == "forged" else text)
    if row.kind != "text" and (role := ROLE_LINE.match(text)):
        text = text[role.end():]
    return text.strip() if text != had else text


def _repeated(path, folder, near, threshold):
    """{line number: kind of fault} of the rows that stand before in the file."""
    columns, lines = Columns(folder), 0
    for _, result in scan_files([path], [Aim()], (None, None)):
        lines = store(columns, 0, result, lines, lines)                 # every line is a row
    book = Book(columns, [path], [False])
    try:
        return {int(book.line[row]): kind for kind, row, *_ in find_duplicates(book, near, threshold)}
    finally:
        book.close()
        columns.close()
        del book

"""Reading people's files: which of the known shapes is this row?

A file is JSON lines, a JSON array or object, a CSV table or plain text, zipped or not; its first bytes tell
(reading/containers.py). An object's shapes are tried in this order, the first that it fits decides (reading/shapes.py):
    chosen + rejected        a preference pair; or rejected_response beside a reply, output: [good, bad], HH transcripts
    messages, conversations  [{"role" or "from", "content" or "value"}, …]
    prompt + response        optionally system, history [[question, answer], …]
    instruction + output     optionally input (follows the instruction on a new line), system, history
    text_field               the user's own field or fields (a list is joined by a space, a missing one is empty)
    question + answer        and the other usual names of the two: query, ask, input, q · answer, target, reply, a …
    text, content            units separated by a literal <|im_end|>; content takes a title before it
A reply's thought (reasoning_content, <think>…</think> at its head), its tool_calls, the results of tools and the tools
on offer become parts of the conversation (reading/acting.py).
A field that is null counts as missing. In a .txt file a text is a paragraph: the lines up to a blank one.
Whatever a row says beside that is counted in Row.dropped, by name.
"""
import json
from dataclasses import replace

from tools.errors import UserError
# these names are part of this file's interface, wherever they live
from tools.reading.bad_lines import BadLines, add_dropped, count_dropped, dropped_text, too_many            # noqa: F401
from tools.reading.columns import fields_of, renamed                                                        # noqa: F401
from tools.reading.lines import TooLong, Unreadable, expand_paths, is_plain_text, iter_lines, rangeable     # noqa: F401
from tools.reading.row import REJECTED, SURROGATE, THOUGHT, Bad, Row, Source  # noqa: F401
from tools.reading.shapes import check_strings, shape, text_row
from tools.template import message_texts


def _object_of(pairs):
    """A JSON object as a dict; of a key written twice JSON takes the last, the earlier one stays to be counted."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for i, (name, value) in enumerate(pairs):
            if any(name == later for later, _ in pairs[i + 1:]):
                found[f"写了两次的 {name}"] = value
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object_of)


def parse_line(raw, text_field=None, plain_text=False):
    """One line's bytes -> Row, or the reason (Chinese str) why it is bad. plain_text: a paragraph of a .txt file.

    text_field: a field, several, or a dict {our name: the data's} as `fields_of` gives for --columns.
    """
    try:
        if isinstance(raw, Unreadable):
            raise Bad(raw.reason)
        if b"\0" in raw:
            raise Bad("含有 NUL 字符")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Bad("不是合法的 UTF-8") from None
        row = _paragraph(text) if plain_text else _object(text, text_field)
        check_strings(row)
        return row
    except Bad as bad:
        return str(bad)
    except RecursionError:
        return "JSON 嵌套太深"


def _paragraph(text):
    source = Source({})
    row = text_row(text, source, plain=True)
    row.dropped = source.dropped
    return row


def _object(text, text_field):
    text = text.removeprefix("\ufeff").strip().removesuffix(",")        # one object a line with commas between them
    try:
        value = DECODER.decode(text)
    except ValueError:
        raise Bad("不是合法的 JSON") from None
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], (str, dict)):
        value = {"messages": value}                                     # a line that is a conversation
    if not isinstance(value, dict):
        raise Bad("这一行不是 JSON 对象")
    value = {key: item for key, item in value.items() if item is not None}
    if isinstance(text_field, dict):
        return shape(renamed(value, text_field), whole=value)
    return shape(value, text_field)


def as_dialogue(row):
    """What a preference row teaches where nothing is compared: the chosen reply; the other is counted as dropped."""
    if row.kind != "preference":
        return row
    messages = [*row.messages, {"role": "assistant", "content": row.chosen}]
    dropped = {**row.dropped, REJECTED: len(row.rejected)}
    return Row("dialogue", messages=messages, file=row.file, line=row.line, dropped=dropped)


def without_thoughts(row):
    """The row as it counts where thoughts are not learned (thinking = off)."""
    size = sum(len(m.get("thinking") or "") for m in row.messages)
    return replace(row, dropped={**row.dropped, THOUGHT: row.dropped.get(THOUGHT, 0) + size}) if size else row


def not_a_pair(row):
    """Why a good Row teaches no preference (Chinese str), or None."""
    if row.kind != "preference":
        return "不是偏好数据：要有 chosen 和 rejected"
    return "chosen 和 rejected 一样，没有可学的偏好" if row.chosen == row.rejected else None


def read_rows(paths, text_field=None, bad=None):
    """Generator of all good Rows of a file, pattern or list; bad lines go to `bad` (BadLines) or raise UserError 8."""
    for path in expand_paths(paths):
        yield from read_range(path, text_field=text_field, bad=bad)


def read_range(path, start=0, end=None, text_field=None, bad=None):
    """Rows of the lines that begin in [start, end) bytes; row.line counts from `start`. Without `bad` one raises."""
    plain = is_plain_text(path)
    for number, raw in iter_lines(path, start, end):
        row = parse_line(raw, text_field, plain)
        if isinstance(row, Row):
            row.file, row.line = str(path), number
            yield row
        elif bad is None:
            raise UserError(f"{path} 第 {number} 行不能用：{row}", 8)
        else:
            bad.add(path, number, row, raw)


def row_texts(row):
    """Every string of a row that a model may see."""
    said = [text for m in row.messages for text in message_texts(m)]
    return [*row.texts, *said, *(t for t in (row.chosen, row.rejected) if t)]

"""Reading people's files: which of the known shapes is this line?

One JSON object a line (.jsonl, .jsonl.gz); the shapes are tried in this order, the first whose fields are there decides:
    chosen + rejected        a preference pair, its prompt in messages, conversations or prompt
    messages, conversations  [{"role" or "from", "content" or "value"}, …]
    prompt + response        optionally system
    instruction + output     optionally input (follows the instruction on a new line), system, history [[question, answer], …]
    text_field               the user's own field or fields (a list is joined by a space, a missing one is empty)
    text                     units separated by a literal <|im_end|>
A field that is null counts as missing. In a .txt file a text is a paragraph: the lines up to a blank one.
"""
import json
import re
from dataclasses import dataclass, field

from tools.reading.bad_lines import BadLines                                         # noqa: F401  these names are part of this
from tools.errors import UserError                                           # file's interface, wherever they live
from tools.reading.lines import TooLong, expand_paths, is_plain_text, iter_lines

END = "<|im_end|>"
ROLES = {"user": "user", "human": "user", "用户": "user", "assistant": "assistant", "asst": "assistant", "gpt": "assistant",
         "model": "assistant", "bot": "assistant", "助手": "assistant", "system": "system", "系统": "system"}
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Row:
    """kind "text": texts. "dialogue": messages [{"role": "system|user|assistant", "content"}]. "preference": messages (the
    prompt), chosen, rejected. line counts from 1."""
    kind: str
    texts: list = field(default_factory=list)
    messages: list = field(default_factory=list)
    chosen: str = None
    rejected: str = None
    file: str = None
    line: int = None


class Bad(Exception):
    """A line that cannot be used; the message says why, in Chinese."""


def parse_line(raw, text_field=None, plain_text=False):
    """One line's bytes -> Row, or the reason (Chinese str) why it is bad. plain_text: a paragraph of a .txt file."""
    try:
        if isinstance(raw, TooLong):
            raise Bad("一行超过 64 MiB")
        if b"\0" in raw:
            raise Bad("含有 NUL 字符")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Bad("不是合法的 UTF-8") from None
        row = _text_row(text) if plain_text else _shape(_object(text), text_field)
        _check_strings(row)
        return row
    except Bad as bad:
        return str(bad)
    except RecursionError:
        return "JSON 嵌套太深"


def _object(text):
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except ValueError:
        raise Bad("不是合法的 JSON") from None
    if not isinstance(value, dict):
        raise Bad("这一行不是 JSON 对象")
    return {key: item for key, item in value.items() if item is not None}


def _shape(row, text_field):
    """The documented order of shapes."""
    if "chosen" in row and "rejected" in row:
        return _preference(row)
    for name in ("messages", "conversations"):
        if name in row:
            return Row("dialogue", messages=_answered(_system(row) + _messages(row[name], name)))
    if "prompt" in row and "response" in row:
        return Row("dialogue", messages=_answered(_system(row) + _turns((_string(row, "prompt"), _string(row, "response")))))
    if "instruction" in row and "output" in row:
        return Row("dialogue", messages=_answered(_instruction(row)))
    if text_field:
        return _text_row(_own_field(row, text_field))
    if "text" in row:
        return _text_row(_string(row, "text"))
    raise Bad("没有认识的字段（messages、conversations、prompt+response、instruction+output、text）")


def _string(row, name):
    if not isinstance(row[name], str):
        raise Bad(f"{name} 应是字符串")
    return row[name]


def _own_field(row, names):
    values = [row.get(name, "") for name in ([names] if isinstance(names, str) else names)]
    if not all(isinstance(value, str) for value in values):
        raise Bad("text_field 指定的字段应是字符串")
    if not any(values):
        raise Bad("text_field 指定的字段都没有内容")
    return " ".join(values)


def _text_row(text):
    units = [unit for unit in text.split(END) if unit.strip()]
    if not units:
        raise Bad("文本是空的")
    return Row("text", texts=units)


def _system(row):
    return [{"role": "system", "content": _string(row, "system")}] if row.get("system") else []


def _turns(pair):
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def _instruction(row):
    question = _string(row, "instruction")
    if row.get("input"):
        question += "\n" + _string(row, "input")
    messages = _system(row)
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise Bad("history 应是 [问, 答] 的列表")
        messages += _turns(pair)
    return messages + _turns((question, _string(row, "output")))


def _messages(turns, name):
    if not isinstance(turns, list):
        raise Bad(f"{name} 应是列表")
    return [_message(turn) for turn in turns]


def _message(turn):
    if not isinstance(turn, dict):
        raise Bad("一轮对话应是 JSON 对象")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise Bad("一轮对话要有 role（或 from）和 content（或 value），都是字符串")
    known = ROLES.get(role.strip().lower())
    if known is None:
        raise Bad(f"不认识的角色 {role[:20]!r}")
    return {"role": known, "content": content}


def _answered(messages):
    """Every reply says something, and there is one."""
    replies = [m["content"] for m in messages if m["role"] == "assistant"]
    if not replies:
        raise Bad("对话里没有回答")
    if not all(reply.strip() for reply in replies):
        raise Bad("有的回答是空的")
    return messages


def _preference(row):
    """The prompt stands in messages, conversations or prompt, or is what both replies' message lists share."""
    name = next((n for n in ("messages", "conversations", "prompt") if n in row), None)
    if name is None:
        prompt = None
    elif isinstance(row[name], str):
        prompt = [{"role": "user", "content": row[name]}]
    else:
        prompt = _messages(row[name], name)
    (chosen_prompt, chosen), (rejected_prompt, rejected) = _reply(row["chosen"]), _reply(row["rejected"])
    if prompt is None:
        if not chosen_prompt or chosen_prompt != rejected_prompt:
            raise Bad("偏好数据没有共同的提问")
        prompt = chosen_prompt
    if not prompt or prompt[-1]["role"] == "assistant":
        raise Bad("偏好数据的提问应以用户的话结尾")
    if not chosen.strip() or not rejected.strip():
        raise Bad("有的回答是空的")
    return Row("preference", messages=_system(row) + prompt, chosen=chosen, rejected=rejected)


def _reply(value):
    """A string, a message, or a list of messages that ends with the reply -> (messages before it, reply)."""
    if isinstance(value, str):
        return [], value
    messages = [_message(value)] if isinstance(value, dict) else _messages(value, "chosen/rejected")
    if not messages or messages[-1]["role"] != "assistant":
        raise Bad("chosen 与 rejected 应以助手的回答结尾")
    return messages[:-1], messages[-1]["content"]


def _check_strings(row):
    for text in [*row.texts, *(m["content"] for m in row.messages), row.chosen or "", row.rejected or ""]:
        if "\0" in text:
            raise Bad("含有 NUL 字符")
        if SURROGATE.search(text):
            raise Bad("含有孤立的代理字符")


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
    """Rows of the lines that begin in [start, end) bytes; row.line counts from `start`. With bad=None a bad line is an error."""
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
    return [*row.texts, *(m["content"] for m in row.messages), *(t for t in (row.chosen, row.rejected) if t)]

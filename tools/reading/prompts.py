"""What a row asks: the conversation up to the reply that is wanted.

Rows with a reply ask for another one; rows that only ask are read with a reply put in, so that every shape that teaches
a dialogue can ask, too.
"""
import json

from tools.reading.lines import Unreadable
from tools.reading.row import UNANSWERED, Row
from tools.reading.shapes import LISTS
from tools.reading.turns import ANSWERS, ROLES

REPLY = "答"


def prompts_of(raw, parse, plain=False):
    """One item of a file -> list of Rows whose `messages` end with the question, or the reason (Chinese) why there is
    none.

    parse(raw) -> Row or reason, as formats.parse_line does. plain: of a .txt file, where every line is a question.
    """
    if isinstance(raw, Unreadable):
        return raw.reason
    if plain:
        raw = b"\n".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogateescape")
                         for line in raw.decode("utf-8", "surrogateescape").splitlines() if line.strip())
        found = [_prompt(line, parse) for line in raw.split(b"\n")]
    else:
        found = [_prompt(raw, parse)]
    return next((one for one in found if isinstance(one, str)), found)


def _prompt(raw, parse):
    try:
        value = json.loads(bytes(raw).decode("utf-8-sig").strip().removesuffix(","))
    except (ValueError, RecursionError):
        return parse(raw)                                               # which knows why
    row = parse(json.dumps(_replied(value)).encode())
    if isinstance(row, str):
        return row
    if row.kind == "text":
        return "只有正文，没有提问。可用 --columns user=问题的字段"
    messages = row.messages
    if row.kind == "dialogue":
        messages = messages[:max(i for i, m in enumerate(messages) if m["role"] == "assistant")]
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        return "最后一个回答前面没有提问"
    if not messages[-1]["content"].strip():
        return "提问是空的"
    return Row("dialogue", messages=messages, dropped={n: size for n, size in row.dropped.items() if n != UNANSWERED})


def _replied(value):
    """The same value with a reply at its end, where it has none."""
    if isinstance(value, str):
        value = {"prompt": value}
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        return value
    name = next((name for name in LISTS if isinstance(value.get(name), list) and value[name]), None)
    if name:
        return value if _answered(value[name]) else {**value, name: [*value[name], _reply_to(value[name])]}
    if any(isinstance(key, str) and key.lower() in ("chosen", "rejected") for key in value):
        return value
    answers = [key for key in value if isinstance(key, str) and key.lower() in ANSWERS]
    if any(value[key] for key in answers):
        return value
    return {**value, **dict.fromkeys(answers or ("response", "output", "answer"), REPLY)}


def _answered(turns):
    last = turns[-1]
    if isinstance(last, str):
        return len(turns) % 2 == 0
    if isinstance(last, list):
        return ROLES.get(str(last[0]).strip().lower(), "assistant") == "assistant" if last else True
    if not isinstance(last, dict):
        return True
    role = next((last[name] for name in ("role", "from", "speaker") if isinstance(last.get(name), str)), None)
    if role is not None:
        return ROLES.get(role.strip().lower()) in ("assistant", "calls")
    return any(last.get(name) for name in ANSWERS)


def _reply_to(turns):
    return REPLY if isinstance(turns[-1], str) else {"role": "assistant", "content": REPLY}

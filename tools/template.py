"""Conversations and texts as ids: the one place that knows what a dialogue looks like.

A document starts with <|im_end|> as context. A turn is [Role id] "：" content; a reply ends with <|im_end|>:
    <|im_end|> User ： 你好 Assistant ： 您好 <|im_end|>
A reply may think and call tools before it speaks; what a tool gives back is a turn of the role Tool, and the tools on
offer are a turn of the role Tools at the very beginning, a line each (tools/offer.py):
    … Assistant ： [think] 先想想 [/think] [call] {"name": …, "arguments": {…}} [/call] 请稍等 <|im_end|> Tool ： 1991
Roles, marks and ends are ids that no content can produce.
"""
import json
from functools import lru_cache

import numpy as np

from tools.words.dialogue import acting

TEMPLATE = 3            # counts changes of the form; part of every token cache's key
END = "<|im_end|>"
COLON = "："
ROLE_NAMES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool", "tools": "Tools"}
THINK, CALL = ("[think]", "[/think]"), ("[call]", "[/call]")
MARKS = {THINK: "thinking", CALL: "calls"}      # what a model that was taught nothing of it never writes
THINKING = ("auto", "on", "off")
DEFINED = ("name", "description", "parameters")                         # what a signature says of a tool, and
FORM = ("type", "properties", "required", "additionalProperties")       # of its parameters


def compact(value):
    """What calls and offered tools look like. ValueError for numbers that JSON has no words for."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def call_text(name, arguments):
    return compact({"name": name, "arguments": arguments})


@lru_cache(maxsize=256)
def offer_text(tools):
    """The tools on offer, definitions as JSON text -> what a model is told of them, a line each. A schema is long and
    the context of a small model short, so most become a signature and what they are described with:

    calendar(date: string 哪天, until?, days?: integer, kind?: {"enum": ["阳历", "农历"]}) 查日子
    """
    try:
        return "\n".join(_signature(tool) or compact(tool) for tool in json.loads(tools))
    except (ValueError, TypeError):
        return tools                                                    # not of tools/reading: as it stands


def _signature(tool):
    """"" for a tool that says more than that: it stays JSON. chat_agent/exports/chat_template.py has the same rule."""
    inner = function_of(tool)
    form, about = inner.get("parameters") or {"properties": {}}, inner.get("description") or ""
    if not (set(tool) <= {"type", "function"} or tool is inner) or set(inner) - {"type", "strict", *DEFINED} or (
            not isinstance(form, dict) or not isinstance(about, str)):
        return ""
    known, needed = form.get("properties"), form.get("required") or []
    if set(form) - set(FORM) or form.get("additionalProperties") or not (
            isinstance(known, dict) and isinstance(needed, list)):
        return ""
    said = ", ".join(_parameter(name, schema, name in needed) for name, schema in known.items())
    return f"{inner['name']}({said})" + (" " + about if about else "")


def _parameter(name, schema, needed):
    plain = isinstance(schema, dict) and set(schema) <= {"type", "description"} and (
        isinstance(schema.get("type"), str) and isinstance(schema.get("description", ""), str))
    said = compact(schema) if not plain else " ".join(filter(None, (schema["type"], schema.get("description"))))
    return name + ("" if needed else "?") + ("" if said == "string" else ": " + said)


def function_of(tool):
    """What a definition or a call says of its function, with or without OpenAI's wrapping."""
    return tool["function"] if isinstance(tool.get("function"), dict) else tool


def parsed_call(text):
    """What a model wrote between the marks of a call -> {"name": str, "arguments": dict}, None where it is no call."""
    try:
        call = json.loads(text, parse_constant=lambda name: None)
        return call if isinstance(call["name"], str) and isinstance(call["arguments"], dict) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def message_parts(message):
    """[(marks around it or None, string)] of what a turn says, in the order in which it stands in the document.

    "thinking" absent: no thought; "": an empty one. "calls": strings as `call_text` makes them.
    """
    thought = message.get("thinking")
    parts = [] if thought is None else [(THINK, thought)]
    said = offer_text(message["content"]) if message["role"] == "tools" else message["content"]
    return parts + [(CALL, call) for call in message.get("calls", ())] + [(None, said)]


def message_texts(message):
    return [text for _, text in message_parts(message)]


def with_thinking(messages, how):
    """The messages as they are learned. how: "auto" as they are; "on" a reply without a thought gets an empty one, so
    that a model learns to do without where it is asked to; "off" without thoughts."""
    if how == "auto":
        return messages
    if how == "off":
        return [{name: value for name, value in m.items() if name != "thinking"} for m in messages]
    return [{"thinking": "", **m} if m["role"] == "assistant" else m for m in messages]


def render(messages, vocab, max_len=None):
    """messages: [{"role": a key of ROLE_NAMES, "content": str}] -> (ids int32 (T,), supervised bool (T,)).

    A reply may have "thinking" and "calls", see `message_parts`. supervised[i]: id i is a target to learn: a reply's
    thought, calls, content and its end, unless the reply has "weight": 0. Turns after the last reply are dropped. At
    max_len a turn of somebody else that does not fit is dropped, a reply is cut.
    """
    if vocab.dialogue:
        return vocab.dialogue.render(messages, max_len)
    return _assemble(messages, iter(vocab.encode_many(_texts(messages))), vocab, max_len)


def _texts(messages):
    return [text for message in messages for text in message_texts(message)]


def _body(message, encoded, vocab):
    """The ids of a turn behind its colon, int32 (T,). encoded: iterator over the ids of its parts."""
    if len(message) == 2:                                               # plain: role and content
        pieces = [next(encoded)]
    else:
        pieces = []
        for marks, _ in message_parts(message):
            begin, end = ([vocab.id(mark)] for mark in marks) if marks else ([], [])
            pieces += [begin, next(encoded), end]
    if message["role"] == "assistant":
        pieces.append([vocab.id(END)])
    return np.concatenate(pieces).astype(np.int32) if len(pieces) > 1 else pieces[0]


def _head(message, vocab):
    return np.array([vocab.id(ROLE_NAMES[message["role"]]), vocab.id(COLON)], dtype=np.int32)


def _assemble(messages, encoded, vocab, max_len=None):
    ids, learn = [np.array([vocab.id(END)], dtype=np.int32)], [np.zeros(1, dtype=bool)]
    size, complete = 1, 1                                               # parts up to the last reply
    bodies = [_body(message, encoded, vocab) for message in messages]   # all: the iterator goes on with the next row
    for message, body in zip(messages, bodies):
        head, replies = _head(message, vocab), message["role"] == "assistant"
        room = len(body) if max_len is None else max_len - size - len(head)
        if room < len(body) and (not replies or room < 1):
            break
        cut = body[:room]
        ids += [head, cut]
        learn += [np.zeros(len(head), dtype=bool), np.full(len(cut), replies and message.get("weight") != 0)]
        size += len(head) + len(cut)
        if replies:
            complete = len(ids)
        if len(cut) < len(body):
            break
    return np.concatenate(ids[:complete]).astype(np.int32), np.concatenate(learn[:complete])


def render_prompt(messages, vocab, thinking="auto"):
    """All turns, then Assistant and the colon: what a model is asked to go on from. -> list of ids

    thinking: "on" begins a thought, "off" puts an empty one there; only for models that have learned to think.
    """
    if vocab.dialogue:
        return vocab.dialogue.prompt(messages, thinking)
    return [vocab.id(END), *continuation(messages, vocab, thinking)]


def continuation(messages, vocab, thinking="auto"):
    """The ids of these turns and of what opens a reply to them, behind all that has been said before. -> list of ids"""
    encoded, ids = iter(vocab.encode_many(_texts(messages))), []
    for message in messages:
        ids += [*_head(message, vocab).tolist(), *_body(message, encoded, vocab).tolist()]
    begun = {"auto": (), "on": THINK[:1], "off": THINK}[thinking]
    return ids + [vocab.id("Assistant"), vocab.id(COLON), *(vocab.id(mark) for mark in begun)]


def openings(vocab):
    """The ids with which a document may begin."""
    return vocab.dialogue.openings if vocab.dialogue else {vocab.id(END)}


def structure_of(vocab, acts=()):
    """What model.sampling.Sampling has to know of a vocabulary and of what a model has learned: keywords."""
    return {"stop_ids": vocab.dialogue.stops, "reserved": 0} if vocab.dialogue else {"marks": marks_of(acts, vocab)}


def turn_cost(vocab):
    """Ids of a turn beside its contents, at most."""
    return 2 if vocab.dialogue is None else vocab.dialogue.cost


def marks_of(acts, vocab):
    """The ids that a model may write which has learned these acts ("thinking", "calls")."""
    return tuple(vocab.id(mark) for pair, act in MARKS.items() if act in acts for mark in pair)


def acts_in(learned, vocab):
    """Which acts ids (T,) that are learned teach. -> set of names"""
    if vocab.dialogue:
        return set()
    return {act for (begin, _), act in MARKS.items() if (learned == vocab.id(begin)).any()}


def render_text(text, vocab):
    """-> (ids int32 (T,), supervised bool (T,)): end, text, end; everything but the first is learned."""
    if vocab.dialogue:
        return vocab.dialogue.document(text)
    return _document(vocab.encode_many([text])[0], vocab)


def _document(content, vocab):
    end = np.array([vocab.id(END)], dtype=np.int32)
    ids = np.concatenate([end, content, end]).astype(np.int32)
    learn = np.ones(len(ids), dtype=bool)
    learn[0] = False
    return ids, learn


def render_many(rows, vocab, max_len=None, thinking="auto"):
    """Rows of formats -> one list of documents [(ids, supervised), …] per row, all contents encoded in one go.

    A text row gives one document per unit, a dialogue one, a preference two (with the chosen and the rejected reply),
    a row with tools none where the vocabulary is of a family that has no words for them. max_len cuts dialogues as
    `render` does; texts stay whole. thinking: see `with_thinking`.
    """
    jobs = [[] if vocab.dialogue and any(map(acting, row.messages)) else _documents(row, thinking)
            for row in rows]                                            # per row: texts, or lists of messages
    if vocab.dialogue:
        return [[vocab.dialogue.document(one) if isinstance(one, str) else vocab.dialogue.render(one, max_len)
                 for one in docs] for docs in jobs]
    encoded = iter(vocab.encode_many([text for docs in jobs for one in docs
                                      for text in ([one] if isinstance(one, str) else _texts(one))]))
    return [[_document(next(encoded), vocab) if isinstance(one, str) else _assemble(one, encoded, vocab, max_len)
             for one in docs] for docs in jobs]


def _documents(row, thinking):
    if row.kind == "text":
        return row.texts
    if row.kind == "dialogue":
        return [with_thinking(row.messages, thinking)]
    return [with_thinking([*row.messages, {"role": "assistant", "content": reply}], thinking)
            for reply in (row.chosen, row.rejected)]

"""Conversations and texts as ids: the one place that knows what a dialogue looks like.

A document starts with <|im_end|> as context. A turn is [Role id] "：" content; a reply ends with <|im_end|>:
    <|im_end|> User ： 你好 Assistant ： 您好 <|im_end|>
Roles and ends are ids that no content can produce.
"""
import numpy as np


TEMPLATE = 1            # counts changes of the form; part of every token cache's key
END = "<|im_end|>"
COLON = "："
ROLE_NAMES = {"user": "User", "assistant": "Assistant", "system": "System"}


def render(messages, vocab, max_len=None):
    """messages: [{"role": "system|user|assistant", "content": str}] -> (ids int32 (T,), supervised bool (T,)).

    supervised[i]: id i is a target to learn: a reply's content and its end, unless the reply has "weight": 0. Turns
    after the last reply are dropped. At max_len a system or user turn that does not fit is dropped, a reply is cut.
    """
    contents = vocab.encode_many([m["content"] for m in messages])
    return _assemble(*_roles(messages), contents, vocab, max_len)


def _roles(messages):
    """-> (role of each, whether each is learned)"""
    return [m["role"] for m in messages], [m["role"] == "assistant" and m.get("weight") != 0 for m in messages]


def _assemble(roles, learned, contents, vocab, max_len=None):
    end, colon = vocab.id(END), vocab.id(COLON)
    ids, learn = [np.array([end], dtype=np.int32)], [np.zeros(1, dtype=bool)]
    size, complete = 1, 1                                               # parts up to the last reply
    for role, wanted, content in zip(roles, learned, contents):
        head = np.array([vocab.id(ROLE_NAMES[role]), colon], dtype=np.int32)
        body = np.append(content, np.int32(end)) if role == "assistant" else content
        room = len(body) if max_len is None else max_len - size - len(head)
        if room < len(body) and (role != "assistant" or room < 1):
            break
        cut = body[:room]
        ids += [head, cut]
        learn += [np.zeros(len(head), dtype=bool), np.full(len(cut), wanted)]
        size += len(head) + len(cut)
        if role == "assistant":
            complete = len(ids)
        if len(cut) < len(body):
            break
    return np.concatenate(ids[:complete]).astype(np.int32), np.concatenate(learn[:complete])


def render_prompt(messages, vocab):
    """All turns, then Assistant and the colon: what a model is asked to go on from. -> list of ids"""
    end, colon = vocab.id(END), vocab.id(COLON)
    ids = [end]
    for message, content in zip(messages, vocab.encode_many([m["content"] for m in messages])):
        ids += [vocab.id(ROLE_NAMES[message["role"]]), colon, *content.tolist()]
        if message["role"] == "assistant":
            ids.append(end)
    return ids + [vocab.id("Assistant"), colon]


def render_text(text, vocab):
    """-> (ids int32 (T,), supervised bool (T,)): end, text, end; everything but the first is learned."""
    return _document(vocab.encode_many([text])[0], vocab)


def _document(content, vocab):
    end = np.array([vocab.id(END)], dtype=np.int32)
    ids = np.concatenate([end, content, end]).astype(np.int32)
    learn = np.ones(len(ids), dtype=bool)
    learn[0] = False
    return ids, learn


def render_many(rows, vocab, max_len=None):
    """Rows of formats -> one list of documents [(ids, supervised), …] per row, all contents encoded in one go.

    A text row gives one document per unit, a dialogue one, a preference two (with the chosen and the rejected reply).
    max_len cuts dialogues as `render` does; texts stay whole.
    """
    jobs = [_documents(row) for row in rows]                            # per row: [(roles, learned or None; contents)]
    encoded = iter(vocab.encode_many([c for docs in jobs for _, contents in docs for c in contents]))
    out = []
    for docs in jobs:
        done = []
        for roles, contents in docs:
            ids = [next(encoded) for _ in contents]
            done.append(_document(ids[0], vocab) if roles is None else _assemble(*roles, ids, vocab, max_len))
        out.append(done)
    return out


def _documents(row):
    if row.kind == "text":
        return [(None, [unit]) for unit in row.texts]
    if row.kind == "dialogue":
        return [(_roles(row.messages), [m["content"] for m in row.messages])]
    whole = [[*row.messages, {"role": "assistant", "content": reply}] for reply in (row.chosen, row.rejected)]
    return [(_roles(messages), [m["content"] for m in messages]) for messages in whole]

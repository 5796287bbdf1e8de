"""The glass box: what a model thought of at each token of a reply that it gave, and how a text is cut into tokens."""

import asyncio

import torch

from chat_agent.server.answers import named
from chat_agent.server.errors import bad, busy
from chat_agent.server.replies import prepared
from chat_agent.server.schemas import parsed
from model.decoding.glass import look_inside
from model.decoding.speculate import WORTH

RIVALS = 5              # other tokens that are named beside the one that was written
WAITING = 8             # requests that may wait for the pass of another one
LONGEST = 20_000        # characters of a text to be cut


class Glass:
    """One pass at a time, beside the engine's thread: reading weights harms nobody."""

    def __init__(self, models, limits):
        self.models, self.limits, self.lock, self.waiting = models, limits, asyncio.Lock(), 0

    async def run(self, work, raw):
        """work(raw, models, limits) -> what it gives. ApiError 429 where too many wait."""
        if self.waiting >= WAITING:
            raise busy("现在请求太多，请过一两秒再试。", "queue_full")
        self.waiting += 1
        try:
            async with self.lock:
                return await asyncio.to_thread(work, raw, self.models, self.limits)
        finally:
            self.waiting -= 1


def inside(raw, models, limits):
    """{"request": as it was sent to /v1/chat/completions, "token_ids" or "reply": what came back, "layer", "head"} ->
    see `told`. ApiError 400."""
    body = parsed(raw)
    if not isinstance(body.get("request"), dict):
        raise bad("request 应是发给 /v1/chat/completions 的对象。", "request")
    ask, served, [prompt] = prepared(body["request"], True, models, limits)
    prompt = prompt.ids
    model, reply = served.model_for(prompt), reply_ids(body, served, limits)
    room = len(reply) if served.positions is None else served.positions - len(prompt)
    reply = reply[:max(1, room)]
    layer = number_of(body, "layer", model.config.n_layer - 1, model.config.n_layer)
    head = number_of(body, "head", 0, model.config.n_head)
    seen = look_inside(model, prompt, reply, layer, head)
    shape = {"model": served.name, "layers": model.config.n_layer, "heads": model.config.n_head,
             "experts": model.config.other_experts if model.config.use_moe else 0, "layer": layer, "head": head}
    return shape | told(seen, prompt, reply, ask.hows[0], served.vocab)


def reply_ids(body, served, limits):
    """The reply's ids as they were written; of a text alone, as it would be cut. ApiError 400."""
    ids, size = body.get("token_ids"), served.model.config.vocab_size
    if ids is None and isinstance(body.get("reply"), str) and len(body["reply"]) <= LONGEST:
        ids = encoded(served.vocab, body["reply"])
    good = isinstance(ids, list) and all(type(one) is int and 0 <= one < size for one in ids)
    if not good or not ids:
        raise bad("token_ids 应是回答的词元编号，至少一个；没有编号就写 reply（回答的文字）。", "token_ids")
    return ids[:limits.new_tokens]


def number_of(body, name, usual, count):
    value = body.get(name, usual)
    if type(value) is not int or not 0 <= value < count:
        raise bad(f"{name} 应是 0 到 {count - 1} 之间的整数。", name)
    return value


def encoded(vocab, text):
    try:
        return vocab.encode(text)
    except ValueError:
        raise bad("文字里有不能用的字符（孤立的代理字符）。", "content") from None


@torch.inference_mode()
def told(seen, prompt, reply, how, vocab):
    """An Inside as plain values. p: the model's own probability; chance: after temperature, penalties and cuts; sure:
    whether head 2 trusts its guess enough to have it checked."""
    p = seen.logits_1.float().softmax(-1)                                         # (R, V)
    chance = how.probabilities(how.allowed(seen.logits_1.clone(), [reply[:i] for i in range(len(reply))]))
    best = p.topk(min(RIVALS + 1, p.shape[-1])).indices.tolist()
    ranks = (p > p.gather(1, torch.tensor(reply, device=p.device)[:, None])).sum(-1).tolist()
    guesses = [None, *guessed(seen.logits_2, reply, vocab)]
    tokens = []
    for i, one in enumerate(reply):
        rivals = [other for other in best[i] if other != one][:RIVALS]
        tokens.append({"id": one, "text": piece(vocab, one), "rank": ranks[i] + 1,
                       "p": short(p[i, one]), "chance": short(chance[i, one]), "guess": guesses[i],
                       "rivals": [{"text": piece(vocab, other), "p": short(p[i, other]),
                                   "chance": short(chance[i, other])} for other in rivals],
                       "experts": [layer and [[e, short(w)] for e, w in zip(layer[0][i].tolist(), layer[1][i])]
                                   for layer in seen.experts],
                       "attention": [short(w) for w in seen.attention[i, :len(prompt) + i]]})
    return {"prompt": [piece(vocab, one) for one in prompt], "tokens": tokens}


def guessed(logits, reply, vocab):
    """Head 2's guesses for reply[1:]; one None each where there is no such head."""
    if logits is None:
        return [None] * (len(reply) - 1)
    best = logits.float().softmax(-1).max(-1)
    return [{"text": piece(vocab, guess), "p": short(p), "sure": bool(p >= WORTH), "right": guess == one}
            for p, guess, one in zip(best.values, best.indices.tolist(), reply[1:])]


def short(value):
    return float(f"{float(value):.4g}")


def piece(vocab, index):
    """An id as people read it: its text, or a name in brackets for what is no whole character."""
    try:
        return vocab.decode_bytes([index]).decode() or named(vocab, index)
    except UnicodeDecodeError:
        return named(vocab, index)


def cut(raw, models, limits):
    """{"model", "content"} -> {"tokens": [{"id", "piece"}]}, as llama.cpp answers /tokenize with_pieces."""
    body = parsed(raw)
    text = body.get("content")
    if not isinstance(text, str) or len(text) > LONGEST:
        raise bad(f"content 应是不超过 {LONGEST} 字的文字。", "content")
    models.look()
    vocab = models.get(body.get("model") if isinstance(body.get("model"), str) else None).vocab
    ids = encoded(vocab, text)
    return {"model": body.get("model"), "tokens": [{"id": one, "piece": piece(vocab, one)} for one in ids]}

"""From logits to the next id: penalties, temperature, top-k, top-p, min-p, and a draw that needs one uniform number.

B rows, V vocabulary. Everything here is a function of its arguments; random numbers come from outside, so that a reply
depends on its own seed only and not on what is generated beside it.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

COLDEST = 1e-5  # below it logits divided by the temperature are no numbers any more
RESERVED = 16   # ids below this are structure (roles, padding, ...): never generated, except for stop ids and marks


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen. temperature below 1e-5 is greedy; then top_k, top_p and min_p do nothing.

    top_k: the k most probable ids (0 = all). top_p: the fewest ids that together have this probability (1 = all, 0 =
    the best one alone). min_p: ids with at least this share of the best one's probability (0 = all).
    repetition_penalty: logits of ids already in the reply are divided by it when positive and multiplied when negative
    (CTRL, arXiv:1909.05858). frequency_penalty, presence_penalty: taken off the logit of such an id, the first once for
    each time it is there, the second once (OpenAI). no_repeat_ngram n: no n ids twice in the same order. Applied in
    this order: penalties, temperature, top_k, top_p, min_p. ValueError for values without a meaning.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    stop_ids: tuple = (1,)
    reserved: int = RESERVED
    marks: tuple = ()       # reserved ids that this model may write: of thoughts, of calls
    # what a reply may be: look(its ids so far) -> (the ids that may come, (V,) bool, or None for all; whether the form
    # decides alone, without penalties and the rule about reserved ids)
    rule: object = None

    def __post_init__(self):
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        good = (0 <= self.temperature < float("inf") and self.top_k >= 0
                and 0 <= self.top_p <= 1 and 0 <= self.min_p <= 1 and self.no_repeat_ngram >= 0
                and 0 < self.repetition_penalty < float("inf")
                and math.isfinite(self.frequency_penalty) and math.isfinite(self.presence_penalty))
        if not good:
            raise ValueError(f"sampling options out of range: {self}")

    @property
    def greedy(self):
        return self.temperature < COLDEST

    @property
    def forgetful(self):
        """Whether the choice of an id does not depend on the ids before it in the reply, other than through the
        model."""
        counted = self.frequency_penalty or self.presence_penalty or self.no_repeat_ngram or self.rule
        return self.repetition_penalty == 1 and not counted

    def held(self, reply):
        """Whether a form decides what comes next in this reply."""
        return self.rule is not None and self.rule.look(reply)[1]

    def allowed(self, logits, replies, rules=None):
        """logits (B, V), changed in place; replies: B lists of the ids generated so far; rules: a rule of its own for
        each, None = no rule, instead of the one for all -> the same logits after bans and penalties."""
        rules = [self.rule] * len(replies) if rules is None else rules
        looks = [(None, False) if rule is None else rule.look(reply) for rule, reply in zip(rules, replies)]
        kept = {i: logits[i].clone() for i, (_, held) in enumerate(looks) if held}
        self._penalized(logits, replies)
        for i, (ids, held) in enumerate(looks):
            if held:
                logits[i] = kept[i]
            if ids is not None:
                logits[i].masked_fill_(~ids.to(logits.device), float("-inf"))
        return logits

    def _penalized(self, logits, replies):
        if self.reserved:
            logits[:, :self.reserved].add_(self._structure(logits))
        if self.repetition_penalty != 1:
            for row, reply in zip(logits, replies):
                seen = torch.tensor(list(dict.fromkeys(reply)), dtype=torch.long, device=logits.device)
                values = row[seen]
                row[seen] = torch.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
        if self.frequency_penalty or self.presence_penalty:
            for row, reply in zip(logits, replies):
                counts = Counter(reply)
                seen = torch.tensor(list(counts), dtype=torch.long, device=logits.device)
                times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
                row[seen] -= self.frequency_penalty * times + self.presence_penalty
        if self.no_repeat_ngram:
            for row, reply in zip(logits, replies):
                banned = repeats(reply, self.no_repeat_ngram)
                if banned:
                    row[banned] = float("-inf")

    def _structure(self, logits):
        """0 for stop ids and marks, -inf for the other reserved ids: (min(reserved, V),)."""
        width = min(self.reserved, logits.shape[-1])
        return _bans(width, (*self.stop_ids, *self.marks), logits.device, logits.dtype)

    def probabilities(self, logits):
        """logits (B, V) after `allowed` -> probabilities (B, V) in float32 or wider; one-hot when greedy."""
        if self.greedy:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.top_k and self.top_k < wide.shape[-1]:
            least = wide.topk(self.top_k, -1).values[..., -1:]
            wide = wide.masked_fill(wide < least, float("-inf"))
        p = wide.softmax(-1)
        if self.top_p < 1:
            ordered, order = p.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered                                 # probability of all better ones
            beyond = before >= max(self.top_p, 1e-9)
            p = p.masked_fill(torch.zeros_like(beyond).scatter_(-1, order, beyond), 0.0)
        if self.min_p:
            p = p.masked_fill(p < self.min_p * p.max(-1, keepdim=True).values, 0.0)
        return p / p.sum(-1, keepdim=True)

    def pick(self, logits, replies, numbers, rules=None):
        """logits (B, V), changed in place; replies: B lists; numbers: B uniform numbers in [0, 1); rules: see allowed
        -> B ids."""
        logits = self.allowed(logits, replies, rules)
        if self.greedy:
            return logits.argmax(-1).tolist()
        return draw(self.probabilities(logits), numbers)


# How a model answers where nobody says otherwise: in the terminal, on the page, over the API and in a Modelfile. A
# checkpoint keeps the table that it was saved with. Greedy, because that scores best on questions that have an answer.
DEFAULTS = {f.name: f.default for f in fields(Sampling) if f.name not in ("stop_ids", "reserved", "marks", "rule")}
DEFAULTS["max_new_tokens"] = 256
# What may be asked for, on every way to a model; Sampling itself takes more.
RANGES = {"temperature": (0, 2), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (0.1, 10),
          "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2), "top_k": (-1, None), "no_repeat_ngram": (0, None)}


@lru_cache(maxsize=64)
def _bans(width, allowed, device, dtype):
    with torch.inference_mode(False):
        bans = torch.full((width,), float("-inf"), device=device, dtype=dtype)
        bans[[i for i in allowed if i < width]] = 0.0
        return bans


def draw(p, numbers):
    """p (B, V) non-negative, numbers: B floats in [0, 1) -> B ids, by inverting the cumulative distribution."""
    p = p.cpu() if p.device.type == "mps" else p                                  # which has no float64
    total = p.double().cumsum(-1)                                                 # (B, V)
    goal = torch.tensor(numbers, dtype=torch.float64, device=p.device)[:, None] * total[:, -1:]
    ids = torch.searchsorted(total, goal, right=True)
    # rounding may point past the last possible id, never at one of probability 0 before it
    last = (p > 0).int().mul(torch.arange(1, p.shape[-1] + 1, device=p.device)).max(-1, keepdim=True).values - 1
    return torch.minimum(ids, last).squeeze(-1).tolist()


def repeats(reply, n):
    """Ids that would complete an n-gram that is already in the reply."""
    if len(reply) < n:
        return []
    tail = tuple(reply[len(reply) - n + 1:])
    return [reply[i + n - 1] for i in range(len(reply) - n + 1) if tuple(reply[i:i + n - 1]) == tail]


def stream_of(seed, index=0):
    """The random numbers of one reply: a random.Random, from system entropy when seed is None. A list: index's own."""
    return random.Random() if seed is None else random.Random(seed[index] if isinstance(seed, list) else
                                                              f"{seed}/{index}")

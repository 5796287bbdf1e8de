"""Writing replies: one at a time as a stream, or many at once. Ids in, ids out; every reply ends, and says why.

    finish "stop"    the model ended the reply with a stop id (which is not part of it)
           "length"  max_new_tokens, or the model's last position (learned positions), was reached
           "loop"    the reply went round in circles (see loop_guard)
"""

from dataclasses import dataclass, field

import torch

from model.decoding.cache import DecodeCache
from model.decoding.loop_guard import LoopGuard
from model.sampling import Sampling, stream_of
from model.decoding.speculate import drafted_ids, plain_ids

CHUNK = 256   # tokens of a prompt read at once


@dataclass
class Reply:
    """ids without the stop id, which is `end`, None where there was none; drafted: ids that head 2 proposed, accepted:
    those that head 1 confirmed. Where it was asked for, of every id of `drawn`: log_p, its log-probability, and, where
    there is a rule, allowed, what it was drawn from, (V,) bool."""

    ids: list = field(default_factory=list)
    finish: str = "length"
    end: int | None = None
    log_p: list = field(default_factory=list)
    allowed: list = field(default_factory=list)
    accepted: int = 0
    drafted: int = 0

    @property
    def acceptance(self):
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def drawn(self):
        """All ids that the model drew: the reply's, and the one that ended it."""
        return self.ids if self.end is None else [*self.ids, self.end]


def generate(model, ids, max_new_tokens, **options):
    """The reply to a prompt: list of ids -> list of new ids, without the stop id. Options as in `stream`; greedy by
    default."""
    return generate_reply(model, ids, max_new_tokens, **options).ids


def generate_reply(model, ids, max_new_tokens, **options):
    """Like `generate`, as a Reply that says why it ended and how much of it was drafted."""
    reply = Reply()
    for _ in stream(model, ids, max_new_tokens, reply=reply, **options):
        pass
    return reply


def stream(model, ids, max_new_tokens, *, seed=None, speculate=None, guard=True, reply=None, prepared=None,
           **sampling):
    """Yields the ids of the reply to the prompt `ids` one by one; `reply`, a Reply given by the caller, is filled on
    the way.

    **sampling: temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty, … (see Sampling). seed: same
    seed, same reply. speculate: let head 2 draft (None: when the model has one); greedy replies are the same with and
    without, sampled ones follow the same distribution. guard: end a reply that loops. prepared: a dict
    kept between replies while the weights stay what they are, see DecodeCache.of. ValueError for an empty prompt, ids
    that are not in the vocabulary, or a prompt longer than the model's positions.
    """
    how, reply = Sampling(**sampling), Reply() if reply is None else reply
    model = model.groups([ids])[0][0]
    room = check_prompt(model.config, ids, max_new_tokens)
    speculate = model.config.use_fc2 if speculate is None else speculate and model.config.use_fc2
    numbers, loops = stream_of(seed), LoopGuard()
    if room < 1:
        return
    with evaluating(model):
        cache = DecodeCache.of(model, 1, len(ids) + min(room, CHUNK) + 1, prepared)      # it grows when it has to
        last = prefill(model, cache, [ids])                                       # (1, d)
        source = drafted_ids if speculate else plain_ids
        for new in source(model, cache, last, how, numbers, reply, room):
            if new in how.stop_ids:
                reply.finish, reply.end = "stop", new
                return
            reply.ids.append(new)
            yield new
            if guard and loops.add(new) and not how.held(reply.ids):
                reply.finish = "loop"
                return


def generate_batch(model, prompts, max_new_tokens, batch_size=128, **options):
    """Replies to many prompts: list of lists of ids -> list of lists of ids in the same order. Options as in
    `generate_replies`."""
    return [r.ids for r in generate_replies(model, prompts, max_new_tokens, batch_size, **options)]


@torch.inference_mode()
def generate_replies(model, prompts, max_new_tokens, batch_size=128, *, seed=None, guard=True, progress=None,
                     prepared=None, scored=False, rule=None, **sampling):
    """`batch_size` replies are written side by side; prompts of similar length go together. -> list of Reply

    max_new_tokens: one number for all, or a list with one for each. Options as in `stream`; there is no speculation
    here, a full batch already keeps the machine busy. With a seed, prompt i gets its own random numbers, whatever
    stands beside it; a list of seeds, or of rules, has one for each prompt. progress: called with the number of replies
    finished since the last call. scored: fill Reply.log_p and .allowed, at temperature 1 without top_k and the like the
    probabilities that were drawn from.
    """
    how, replies, rooms = Sampling(**sampling), [Reply() for _ in prompts], {}
    prepared, groups = {} if prepared is None else prepared, model.groups(prompts)
    wanted = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    rules = rule if isinstance(rule, list) else [rule] * len(prompts)
    for expert, places in groups:
        rooms |= {i: check_prompt(expert.config, prompts[i], wanted[i]) for i in places}
    for expert, places in groups:
        order = sorted(places, key=lambda i: -len(prompts[i]))
        with evaluating(expert):
            for begin in range(0, len(order), batch_size):
                group = order[begin:begin + batch_size]
                jobs = [_Job(replies[i], prompts[i], stream_of(seed, i), guard, rooms[i], rules[i]) for i in group]
                _write([j for j in jobs if j.room > 0], expert, how, prepared, scored)
                if progress:
                    progress(len(group))
    return replies


class _Job:
    """One reply of a batch on its way."""

    def __init__(self, reply, prompt, numbers, guard, room, rule):
        self.reply, self.prompt, self.numbers, self.room, self.rule = reply, prompt, numbers, room, rule
        self.loops = LoopGuard() if guard else None

    def take(self, new, how):
        """Add an id; whether the reply is finished."""
        if new in how.stop_ids:
            self.reply.finish, self.reply.end = "stop", new
            return True
        self.reply.ids.append(new)
        if self.loops and self.loops.add(new) and not (self.rule and self.rule.look(self.reply.ids)[1]):
            self.reply.finish = "loop"
            return True
        return len(self.reply.ids) >= self.room


def _write(jobs, model, how, prepared, scored):
    if not jobs:
        return
    prompts = list(dict.fromkeys(tuple(job.prompt) for job in jobs))              # one that is asked often is read once
    place = {prompt: i for i, prompt in enumerate(prompts)}
    cache = DecodeCache.of(model, len(prompts), max(map(len, prompts)) + 32, prepared)
    last = prefill(model, cache, [list(prompt) for prompt in prompts])
    if len(prompts) < len(jobs):
        slots = [place[tuple(job.prompt)] for job in jobs]
        cache.keep(slots)
        last = last[slots]                                                        # (B, d)
    while True:
        numbers = None if how.greedy else [j.numbers.random() for j in jobs]
        logits = cache.logits(last)
        new = how.pick(logits, [j.reply.ids for j in jobs], numbers, [j.rule for j in jobs])      # bans are in `logits`
        if scored:
            _score(jobs, logits, new)
        going = [i for i, job in enumerate(jobs) if not job.take(new[i], how)]
        if not going:
            return
        if len(going) < len(jobs):
            cache.keep(going)
            jobs, new = [jobs[i] for i in going], [new[i] for i in going]
        last = model.decode(torch.tensor(new, device=last.device)[:, None], cache)[:, 0]


def _score(jobs, logits, new):
    log_p = logits.log_softmax(-1).gather(1, torch.tensor(new, device=logits.device)[:, None])[:, 0]
    for job, value in zip(jobs, log_p.tolist()):
        job.reply.log_p.append(value)
    if ruled := [i for i, job in enumerate(jobs) if job.rule is not None]:
        for i, allowed in zip(ruled, (logits[ruled] > float("-inf")).cpu()):
            jobs[i].reply.allowed.append(allowed)


@torch.inference_mode()
def prefill(model, cache, prompts, slots=None, chunk=CHUNK):
    """Read prompts (B lists of ids) into the first B slots, or `slots`, a chunk at a time -> hidden state of each last
    id (B, d)."""
    slots = list(range(len(prompts))) if slots is None else slots
    device, last, done = model.embed.weight.device, [None] * len(prompts), 0
    while True:
        rows = [i for i, p in enumerate(prompts) if len(p) > done]
        if not rows:
            return torch.stack(last)
        parts = [prompts[i][done:done + chunk] for i in rows]
        counts, longest = [len(p) for p in parts], max(map(len, parts))
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in parts], device=device)
        hidden = model.decode(ids, cache, [slots[i] for i in rows], counts)
        for row, i in enumerate(rows):
            last[i] = hidden[row, counts[row] - 1]
        done += chunk


def check_prompt(config, ids, max_new_tokens):
    """How many ids may follow the prompt. ValueError if it cannot be read at all."""
    if not len(ids):
        raise ValueError("the prompt is empty")
    if min(ids) < 0 or max(ids) >= config.vocab_size:
        raise ValueError(f"the prompt holds ids outside 0..{config.vocab_size - 1}")
    if config.position != "learned":
        return max_new_tokens
    if len(ids) > config.max_position:
        raise ValueError(f"the prompt has {len(ids)} ids, the model {config.max_position} positions")
    return min(max_new_tokens, config.max_position - len(ids) + 1)                # the last id is not read any more


class evaluating:
    """Eval mode inside the block, the former mode after it."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.was = self.model.training
        if self.was:
            self.model.eval()

    def __exit__(self, *_):
        if self.was:
            self.model.train()

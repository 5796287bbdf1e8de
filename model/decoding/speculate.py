"""One reply, id after id: plainly, or with head 2 as the draftsman (self-speculation).

Head 2 reads the hidden state of position t and guesses id t + 2. The next pass reads the known id t + 1 and the guess
together, and head 1 judges the guess: confirmed, it makes two ids of one pass; refused, it is forgotten again. Greedy
replies stay what they were. Sampled ones keep their distribution by rejection sampling (Leviathan et al. 2023,
arXiv:2211.17192): a guess d drawn from q is kept with probability min(1, p(d) / q(d)), else the id is drawn from the
positive part of p - q.
"""

import torch

from model.sampling import draw

WORTH = 0.3   # head 2 must give its guess this probability, or the second row costs more than it brings


@torch.inference_mode()
def plain_ids(model, cache, last, how, numbers, reply, room):
    """Yields up to `room` ids. last (1, d): hidden state of the prompt's last id. The caller keeps reply.ids up to
    date."""
    for place in range(room):
        new = how.pick(cache.logits(last), [reply.ids], _numbers(how, numbers))[0]
        yield new
        if place + 1 < room:
            last = model.decode(torch.tensor([[new]], device=last.device), cache)[:, 0]


@torch.inference_mode()
def drafted_ids(model, cache, last, how, numbers, reply, room, worth=WORTH):
    """Like `plain_ids`; counts reply.drafted and reply.accepted. `worth` changes the speed only, never the
    distribution."""
    new = how.pick(cache.logits(last), [reply.ids], _numbers(how, numbers))[0]
    left = room
    while True:
        yield new
        left -= 1
        if not left:
            return
        guess, q = _guess(model, cache, last, new, how, numbers, reply, worth) if left > 1 else (None, None)
        if guess is None:
            last = model.decode(torch.tensor([[new]], device=last.device), cache)[:, 0]
            new = how.pick(cache.logits(last), [reply.ids], _numbers(how, numbers))[0]
            continue
        hidden = model.decode(torch.tensor([[new, guess]], device=last.device), cache)[0]                       # (2, d)
        logits = cache.heads[0](hidden)
        reply.drafted += 1
        new, following = _judged(logits, guess, q, how, numbers, reply)
        if new != guess:
            cache.truncate(0, cache.lengths[0] - 1)
            last = hidden[:1]
            continue
        reply.accepted += 1
        yield guess
        left -= 1
        if not left:
            return
        last = hidden[1:]
        new = how.pick(logits[1:], [reply.ids], _numbers(how, numbers))[0] if following is None else following


def _guess(model, cache, last, new, how, numbers, reply, worth):
    """Head 2's id for the place after the chosen `new`, and the distribution (1, V) it was drawn from (None when
    greedy); id None where it is not sure enough. last (1, d): hidden state before `new`."""
    ahead = model.ahead(last, torch.tensor([new], device=last.device))
    logits = how.allowed(cache.heads[1](ahead), [reply.ids])
    if how.greedy:
        best, guess = logits.softmax(-1).max(-1)
        return (guess.item() if best.item() >= worth else None), None
    q = how.probabilities(logits)
    if worth and q.max().item() < worth:
        return None, None
    return draw(q, [numbers.random()])[0], q


def _judged(logits, guess, q, how, numbers, reply):
    """Head 1's verdict, logits (2, V): the guess itself or the id that stands in its place, and, where it is known
    already, the next."""
    if how.greedy and how.forgetful:
        return how.pick(logits, [reply.ids] * 2, None)
    if how.greedy:
        return how.pick(logits[:1], [reply.ids], None)[0], None
    p = how.probabilities(how.allowed(logits[:1], [reply.ids]))
    if numbers.random() * q[0, guess].item() < p[0, guess].item():
        return guess, None
    rest = (p - q).clamp_min_(0)
    return draw(rest if rest.sum() > 0 else p, [numbers.random()])[0], None


def _numbers(how, numbers):
    return None if how.greedy else [numbers.random()]

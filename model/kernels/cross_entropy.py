"""Cross-entropy straight from hidden states, without ever holding all logits.

The logits of some hundred positions are made, turned into their gradient and dropped, chunk by chunk. At 4,096 tokens
and 5,000 words this replaces several float32 tensors of 80 MB each by one of a few MB that stays in cache.
"""

import torch
from torch.nn import functional as F

from model.layers import compute_dtype

IGNORE = -100         # a label that is no target, as torch's cross_entropy has it; any negative one is none
CHUNK = 256           # positions at a time: their logits stay in the cache
GPU_CHUNK = 2048
# of several chunks make one product for the weight's gradient: a (V, d) sum per chunk would cost more than they do
ERRORS = 1 << 23


def chunk_size(device):
    return CHUNK if device.type == "cpu" else GPU_CHUNK


class WeightGradient:
    """The sum over all chunks of error.T @ rows: the gradient (V, d) of a head's weight, made for several chunks at
    once."""

    def __init__(self, rows, words, size, wide):
        """rows (N, d): all hidden states, in chunks of `size`; the sum is kept in dtype `wide`."""
        self.rows, self.span = rows, size * max(1, ERRORS // (size * words))
        self.errors = rows.new_empty(min(self.span, len(rows)), words)
        self.total = torch.zeros(words, rows.shape[1], dtype=wide, device=rows.device)

    def add(self, start, error):
        """error (C, V) of the chunk that begins at row `start` -> the same in the rows' dtype."""
        place, last = start % self.span, start + len(error)
        error = self.errors[place:place + len(error)].copy_(error)
        if last % self.span == 0 or last == len(self.rows):
            self.total += self.errors[:place + len(error)].t() @ self.rows[start - place:last]
        return error


def softmax_and_norm(logits, wide):
    """logits (C, V) -> probabilities and the logarithm of their normaliser (C, 1), both in dtype `wide`, in one pass
    over exponentials."""
    probabilities = logits.softmax(-1, dtype=wide)
    # logsumexp = largest logit - log of its probability, which is at least 1 / V
    return probabilities, logits.amax(-1, True).to(wide) - probabilities.amax(-1, True).log()


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over targets of -log p(target), p = softmax(hidden @ weight.T), or where a head counts the mixture
    exp(network) * softmax(..) + exp(counted). hidden (N, d), weight (V, d), targets (N,); network, counted (N,) or
    None.

    The gradients are made in the forward pass, chunk by chunk: softmax minus the one-hot target, times the share of
    p(target) that came from the network. a (R, d), b (V, R) or None: what is added to the weight, b @ a; no matrix of
    the weight's size is made of it.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, network=None, counted=None, a=None, b=None):
        h, w, wide = hidden.to(dtype), weight.to(dtype), torch.promote_types(dtype, torch.float32)
        total, size = torch.zeros((), dtype=wide, device=h.device), chunk_size(h.device)
        need, learns = any(ctx.needs_input_grad), ctx.needs_input_grad[1]             # a frozen head does not learn
        grad_h = torch.empty_like(h) if need else None
        of_weight = WeightGradient(h, len(w), size, wide) if learns else None
        added = None if a is None else LowRankPart(a.to(dtype), b.to(dtype), wide)
        # beside targets there are other rows where nobody has picked them, see picks
        mask = None if network is None and picks(h.device) else (targets >= 0).to(wide)
        shares = None if mask is None else mask.clone()
        for start in range(0, len(h), size):
            part = slice(start, start + size)
            goal = targets[part, None].clamp_min(0)
            logits = h[part] @ w.t()                                              # (C, V)
            if added is not None:
                logits += added.logits(h[part])
            error, norm = softmax_and_norm(logits, wide)
            log_p = (logits.gather(1, goal).to(wide) - norm)[:, 0]
            if network is not None:
                log_network = log_p + network[part]
                log_p = torch.logaddexp(log_network, counted[part].to(wide))
                shares[part] *= (log_network - log_p).exp()
            total -= (log_p if mask is None else log_p * mask[part]).sum()
            if need:
                error.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=wide))
                error = error if mask is None else error.mul_(shares[part, None])
                error = of_weight.add(start, error) if learns else error.to(dtype)
                torch.mm(error, w, out=grad_h[part])
                if added is not None:
                    grad_h[part] += added.learn(h[part], error)
        if need:
            low = (None, None) if added is None else (added.grad_a, added.grad_b)
            ctx.save_for_backward(grad_h, of_weight.total if learns else None, shares, mask, *low)
            ctx.dtypes, ctx.mixed = (hidden.dtype, weight.dtype, a is not None and a.dtype), network is not None
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_w, shares, mask, *low = ctx.saved_tensors
        grad_w = None if grad_w is None else (grad_w * grad).to(ctx.dtypes[1])
        low = [None if part is None else (part * grad).to(ctx.dtypes[2]) for part in low]
        mixed = (-shares * grad, (shares - mask) * grad) if ctx.mixed else (None, None)
        return grad_h.to(ctx.dtypes[0]) * grad, grad_w, None, None, *mixed, *low


class LowRankPart:
    """b @ a beside a head's weight, a (R, d), b (V, R), and their gradients, summed over chunks."""

    def __init__(self, a, b, wide):
        self.a, self.b = a, b
        self.grad_a, self.grad_b = (torch.zeros(t.shape, dtype=wide, device=t.device) for t in (a, b))

    def logits(self, rows):
        self.inner = rows @ self.a.t()                                                        # (C, R)
        return self.inner @ self.b.t()

    def learn(self, rows, error):
        """error (C, V) of the rows that `logits` saw last -> their gradient (C, d)."""
        self.grad_b += error.t() @ self.inner
        inner = error @ self.b
        self.grad_a += inner.t() @ rows
        return inner @ self.a


def linear_cross_entropy(hidden, weight, labels, network=None, counted=None, low=(None, None)):
    """Sum of cross-entropies of softmax(hidden @ weight.T) over labels >= 0, and how many there were.

    hidden: (N, d), weight: (V, d), labels: (N,), negative = not a target; network, counted, low = (a, b): see
    _LinearCrossEntropy.
    Returns two scalars; the first has a gradient.
    """
    hidden, labels, network, counted = chosen(labels, hidden, labels, network, counted)
    if not torch.is_grad_enabled():           # a Function is told of weights that learn even then
        hidden, weight, *low = (t if t is None else t.detach() for t in (hidden, weight, *low))
    total = _LinearCrossEntropy.apply(hidden, weight, labels, compute_dtype(hidden), network, counted, *low)
    return total, (labels >= 0).sum()


def head_cross_entropy(head, hidden, labels, *more):
    """linear_cross_entropy of a head: a Linear, or one that counts, which wants `more` as in token_losses."""
    if hasattr(head, "cross_entropy"):
        return head.cross_entropy(hidden, labels, *more)
    if hasattr(head, "low_rank"):
        weight, *low = head.low_rank()
        return linear_cross_entropy(hidden, weight, labels, low=low)
    return linear_cross_entropy(hidden, head.weight, labels)


def picks(device):
    """Whether rows without a target are left out here. Only on a CPU: any other would be waited for to count them."""
    return device.type == "cpu"


def places_of_targets(labels):
    """The places of labels (N,) >= 0, None = all of them."""
    if not picks(labels.device):
        return None
    places = (labels >= 0).nonzero().squeeze(1)
    return None if len(places) == len(labels) else places


def chosen(labels, *tensors):
    """The rows of `tensors`, (N, ...) each or None, that have a target: labels (N,) >= 0."""
    return rows_at(places_of_targets(labels), *tensors)


def rows_at(places, *tensors):
    """`tensors` at `places`, None = all."""
    return tensors if places is None else [t if t is None else t.index_select(0, places) for t in tensors]


def plain_losses(logits, labels):
    """Cross-entropy of each label (N,), 0 where it is negative. logits (N, V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")


def token_losses(hidden, head, labels, *more):
    """Cross-entropy of each position, 0 where labels are negative. hidden (N, d), labels (N,) -> (N,), plain autograd.

    head: a weight (V, d), a Linear, or a head that counts; that one wants `more`: `before` (N, P), `left_out` (N,) or
    None.
    """
    parts, size = [], chunk_size(hidden.device)
    for begin in range(0, max(1, len(labels)), size):
        h, goal, *rest = (t if t is None else t[begin:begin + size] for t in (hidden, labels, *more))
        if hasattr(head, "losses"):
            parts.append(head.losses(h, goal, *rest))
        else:
            parts.append(plain_losses(head(h) if callable(head) else F.linear(h, head), goal))
    return torch.cat(parts)


def target_losses(hidden, head, labels, *more):
    """token_losses for labels (N,) most of which are negative: logits are made for the targets alone. -> (N,)"""
    places = places_of_targets(labels)
    losses = token_losses(*rows_at(places, hidden), head, *rows_at(places, labels, *more))
    return losses if places is None else losses.new_zeros(len(labels)).index_copy(0, places, losses)

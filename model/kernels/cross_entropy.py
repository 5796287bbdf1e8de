"""Cross-entropy straight from hidden states, without ever holding all logits.

The logits of some hundred positions are made, turned into their gradient and dropped, chunk by chunk. At 4,096 tokens
and
5,000 words this replaces several float32 tensors of 80 MB each by one of a few MB that stays in cache.
"""

import torch
from torch.nn import functional as F

from model.layers import compute_dtype

IGNORE = -100         # a label that is no target, as torch's cross_entropy has it; any negative one is none
CHUNK = 256           # positions at a time: their logits stay in the cache
GPU_CHUNK = 2048


def chunk_size(device):
    return CHUNK if device.type == "cpu" else GPU_CHUNK
# of several chunks make one product for the weight's gradient: a (V, d) sum per chunk would cost more than they do
ERRORS = 1 << 23


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
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        # the weight of a frozen head does not learn
        need, learns = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[1]
        h, w = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=h.device)
        grad_h = torch.empty_like(h) if need else None
        size = chunk_size(h.device)
        of_weight = WeightGradient(h, len(w), size, wide) if learns else None
        for start in range(0, len(h), size):
            part = slice(start, start + size)
            goal = targets[part, None]
            logits = h[part] @ w.t()                                              # (C, V)
            error, norm = softmax_and_norm(logits, wide)
            total += (norm - logits.gather(1, goal).to(wide)).sum()
            if need:
                # softmax minus the one-hot target
                error.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=wide))
                error = of_weight.add(start, error) if learns else error.to(dtype)
                torch.mm(error, w, out=grad_h[part])
        if need:
            ctx.save_for_backward(grad_h, of_weight.total if learns else None)
            ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_w = ctx.saved_tensors
        grad_w = None if grad_w is None else (grad_w * grad).to(ctx.dtypes[1])
        return grad_h.to(ctx.dtypes[0]) * grad, grad_w, None, None


def without_gradient(*tensors):
    """The tensors as they are, or detached where no gradient is asked for: a Function is told of weights that learn
    even then."""
    return tensors if torch.is_grad_enabled() else [t.detach() for t in tensors]


def linear_cross_entropy(hidden, weight, labels):
    """Sum of cross-entropies of softmax(hidden @ weight.T) over labels >= 0, and how many there were.

    hidden: (N, d), weight: (V, d), labels: (N,), negative = not a target. Returns two scalars; the first has a
    gradient.
    """
    hidden, labels = chosen(labels, hidden, labels)
    total = _LinearCrossEntropy.apply(*without_gradient(hidden, weight), labels, compute_dtype(hidden))
    return total, torch.full((), len(labels), device=hidden.device)


def chosen(labels, *tensors):
    """The rows of `tensors`, (N, ...) each or None, that have a target: labels (N,) >= 0."""
    picked = (labels >= 0).nonzero().squeeze(1)
    return tensors if len(picked) == len(labels) else [t if t is None else t.index_select(0, picked) for t in tensors]


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
    picked = (labels >= 0).nonzero().squeeze(1)
    hidden, goal, *more = chosen(labels, hidden, labels, *more)
    losses = token_losses(hidden, head, goal, *more)
    return losses.new_zeros(len(labels)).index_copy(0, picked, losses)

"""Cross-entropy straight from hidden states, without ever holding all logits.

The logits of some hundred positions are made, turned into their gradient and dropped, chunk by chunk. At 4,096 tokens and
5,000 words this replaces several float32 tensors of 80 MB each by one of a few MB that stays in cache.
"""

import torch
from torch.nn import functional as F

from model.layers import compute_dtype

CHUNK = 128           # positions at a time: their logits stay in a core's cache
GPU_CHUNK = 2048


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        need, learns = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[1]      # the weight of a frozen head does not learn
        h, w = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=h.device)
        grad_h = torch.empty_like(h) if need else None
        grad_w = torch.zeros(weight.shape, dtype=wide, device=h.device) if learns else None
        size = CHUNK if h.device.type == "cpu" else GPU_CHUNK
        for start in range(0, len(h), size):
            rows, goal = h[start:start + size], targets[start:start + size, None]
            logits = rows @ w.t()                                                 # (C, V)
            error = logits.softmax(-1, dtype=wide)                                # one pass while a row is in the cache
            # logsumexp = largest logit - log of its probability, which is at least 1 / V
            total += (logits.amax(-1, True).to(wide) - error.amax(-1, True).log() - logits.gather(1, goal).to(wide)).sum()
            if need:
                error.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=wide))      # softmax minus the one-hot target
                error = error.to(dtype)
                torch.mm(error, w, out=grad_h[start:start + size])
                if learns:
                    grad_w += error.t() @ rows
        if need:
            ctx.save_for_backward(grad_h, grad_w)
            ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_w = ctx.saved_tensors
        grad_w = None if grad_w is None else (grad_w * grad).to(ctx.dtypes[1])
        return grad_h.to(ctx.dtypes[0]) * grad, grad_w, None, None


def linear_cross_entropy(hidden, weight, labels):
    """Sum of cross-entropies of softmax(hidden @ weight.T) over labels >= 0, and how many there were.

    hidden: (N, d), weight: (V, d), labels: (N,), negative = not a target. Returns two scalars; the first has a gradient.
    """
    picked = (labels >= 0).nonzero().squeeze(1)
    if len(picked) < len(labels):
        hidden, labels = hidden.index_select(0, picked), labels.index_select(0, picked)
    total = _LinearCrossEntropy.apply(hidden, weight, labels, compute_dtype(hidden))
    return total, torch.tensor(len(labels), device=hidden.device)


def token_losses(hidden, weight, labels):
    """Cross-entropy of each position, 0 where labels are negative. hidden (N, d), labels (N,) -> (N,), plain autograd.

    weight: (V, d), or a head that makes logits of hidden states.
    """
    parts = []
    for h, goal in zip(hidden.split(CHUNK), labels.split(CHUNK)):
        logits = weight(h) if callable(weight) else F.linear(h, weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(F.cross_entropy(logits, goal, ignore_index=-100, reduction="none"))
    return torch.cat(parts)


def target_losses(hidden, weight, labels):
    """token_losses for labels (N,) most of which are negative: logits are made for the targets alone. -> (N,)"""
    picked = (labels >= 0).nonzero().squeeze(1)
    losses = token_losses(hidden.index_select(0, picked), weight, labels.index_select(0, picked))
    return losses.new_zeros(len(labels)).index_copy(0, picked, losses)

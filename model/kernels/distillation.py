"""Cross-entropy of head 1 together with what a teacher would have said, without ever holding all logits.

Hinton et al. 2015, arXiv:1503.02531. At temperature T the teacher's distribution p is known by its k likeliest words;
all others count as one: the divergence of the k + 1 events is the plain KL(p || q) where k is the whole vocabulary, and
never more than it otherwise.

    sum of -log q(target)  +  weight * sum of KL(p_T || q_T)
"""

import torch

from model.kernels.cross_entropy import WeightGradient, chosen, chunk_size, picks, softmax_and_norm
from model.layers import compute_dtype

LEAST = -60.0           # log of the least probability that the student's other words count with


def divergence(logits, ids, logs, temperature):
    """logits (C, V) of the student, ids (C, k) and logs (C, k) of the teacher at this temperature -> KL (C,) and its
    gradient by the logits (C, V)."""
    q = (logits / temperature).log_softmax(-1)
    own, p = q.gather(1, ids), logs.exp()
    nats = (p * (logs - own)).sum(-1)
    if ids.shape[1] >= logits.shape[1]:
        return nats, q.exp_().scatter_add_(1, ids, -p).div_(temperature)
    rest = (1 - p.sum(-1)).clamp_min(0)                                          # the teacher's for all other words
    others = q.scatter(1, ids, float("-inf")).logsumexp(-1).clamp_min(LEAST)     # log of the student's
    nats = nats + torch.xlogy(rest, rest) - rest * others
    error = q.exp_().mul_((1 - rest / others.exp())[:, None])
    return nats, error.scatter_(1, ids, own.exp() - p).div_(temperature)


class _Distilled(torch.autograd.Function):
    """hidden (N, d), weight (V, d), targets (N,), ids and logs (N, k) -> both sums as one number, and `share` times the
    divergences alone. Gradients are made in the forward pass, as in _LinearCrossEntropy."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, ids, logs, temperature, share, dtype):
        h, w, wide = hidden.to(dtype), weight.to(dtype), torch.promote_types(dtype, torch.float32)
        size, learns = chunk_size(h.device), ctx.needs_input_grad[1]
        total, taught = (torch.zeros((), dtype=wide, device=h.device) for _ in range(2))
        grad_h = torch.empty_like(h)
        of_weight = WeightGradient(h, len(w), size, wide) if learns else None
        counts = None if picks(h.device) else (targets >= 0).to(wide)            # else all rows have a target
        for start in range(0, len(h), size):
            part = slice(start, start + size)
            goal = targets[part, None].clamp_min(0)
            logits = h[part] @ w.t()                                             # (C, V)
            error, norm = softmax_and_norm(logits, wide)
            losses = (norm - logits.gather(1, goal).to(wide))[:, 0]
            error.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=wide))
            nats, more = divergence(logits.to(wide), ids[part], logs[part].to(wide), temperature)
            error.add_(more, alpha=share)
            if counts is not None:
                losses, nats, error = losses * counts[part], nats * counts[part], error.mul_(counts[part, None])
            taught += share * nats.sum()
            total += losses.sum()
            error = of_weight.add(start, error) if learns else error.to(dtype)
            torch.mm(error, w, out=grad_h[part])
        ctx.save_for_backward(grad_h, of_weight.total if learns else None)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(taught)
        return total + taught, taught

    @staticmethod
    def backward(ctx, grad, _):
        grad_h, grad_w = ctx.saved_tensors
        grad_w = None if grad_w is None else (grad_w * grad).to(ctx.dtypes[1])
        return grad_h.to(ctx.dtypes[0]) * grad, grad_w, *[None] * 6


def distilled_cross_entropy(head, hidden, labels, taught):
    """As head_cross_entropy of a Linear, with a teacher: hidden (N, d), labels (N,), negative = not a target.

    taught: ids (.., k) and logs (.., k) for each place, temperature, weight. -> (sum with the weighted divergence,
    number of targets, the weighted divergence alone, without a gradient)
    """
    k = taught.ids.shape[-1]
    rows = chosen(labels, hidden, labels, taught.ids.view(-1, k), taught.logs.view(-1, k))
    total, extra = _Distilled.apply(rows[0], head.weight, *rows[1:], taught.temperature, taught.weight,
                                    compute_dtype(hidden))
    return total, (rows[1] >= 0).sum(), extra

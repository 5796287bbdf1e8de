"""Causal attention over short documents on a CPU, by plain batched products.

torch's fused CPU kernel wins where the score matrix no longer fits the cache. The documents of a dialogue corpus are
far shorter: there three batched products with one saved matrix are several times faster, in the backward pass most of
all.
"""

import torch

LONGEST = 1024     # beyond it the saved probabilities grow larger than what the fused kernel's recomputation costs
BLOCK = 128        # queries per block; a block only looks at keys up to its own end


def applies(q, length):
    """Where this path was measured to be faster: reduced precision on a CPU, documents that are not long."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= LONGEST


class ShortCausalAttention(torch.autograd.Function):
    """softmax(scale * q k^T + causal) v. q, k: (G, L, d_k), v: (G, L, d_v), G = documents * heads -> (G, L, d_v)."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        # here it is d_k wide, later it would be L wide
        q = q * scale
        blocks, saved = _blocks(q.shape[1]), []
        out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=v.dtype, device=v.device)
        for first, last in blocks:
            scores = torch.bmm(q[:, first:last], k[:, :last].transpose(1, 2))    # (G, queries, keys)
            scores[:, :, first:].add_(_mask(last - first, scores))                # all earlier keys may be seen
            saved.append(scores.softmax(-1))
            out[:, first:last] = torch.bmm(saved[-1], v[:, :last])
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, *saved)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *saved = ctx.saved_tensors
        grad, grad_q, grad_k, grad_v = grad.contiguous(), torch.empty_like(q), None, None
        for (first, last), p in zip(reversed(_blocks(q.shape[1])), reversed(saved)):     # the last block sees every key
            g = grad[:, first:last]
            to_v = torch.bmm(p.transpose(1, 2), g)
            grad_p = torch.bmm(g, v[:, :last].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, first:last] = torch.bmm(grad_s, k[:, :last])
            to_k = torch.bmm(grad_s.transpose(1, 2), q[:, first:last])
            if grad_k is None:
                grad_k, grad_v = to_k, to_v
            else:
                grad_k[:, :last] += to_k
                grad_v[:, :last] += to_v
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None


def short_causal_attention(q, k, v, scale):
    """q, k: (D, L, H, d_k), v: (D, L, H, d_v) -> (D, L, H, d_v)."""
    documents, length, heads, _ = q.shape
    q, k, v = (t.transpose(1, 2).reshape(documents * heads, length, -1) for t in (q, k, v))
    out = ShortCausalAttention.apply(q, k, v, scale)
    return out.view(documents, heads, length, -1).transpose(1, 2)


def _blocks(length):
    if length <= BLOCK + BLOCK // 2:
        return [(0, length)]
    return [(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]


def _mask(size, like):
    """0 where query i of a block may see key j of the same block, -inf where it may not. (size, size)"""
    return torch.full((size, size), float("-inf"), dtype=like.dtype).triu_(1)

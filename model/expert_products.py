"""All routed experts in one differentiable step, with the buffers and passes it takes and no more.

Left to autograd, every expert's slice costs its own views, casts and concatenations; on a CPU those outweigh the products.
M = N * K assignments, sorted by expert.
"""

import torch

from model.layers import gated, gated_backward


class RoutedExperts(torch.autograd.Function):
    """sum over the K chosen experts of weight * down(act(up(x))), gated activations.

    x (N, d); weights (N, K); order (M,) assignments sorted by expert; back (M,) its inverse; sizes: tokens per expert;
    up (E, 2h, d), gate rows first; down (E, d, h) -> (N, d) in x's dtype.
    """

    @staticmethod
    def forward(ctx, x, weights, order, back, sizes, up, down, activation):
        keep, hidden = weights.shape[1], down.shape[2]
        up_c, down_c = up.to(x.dtype), down.to(x.dtype)
        gathered = x.index_select(0, order // keep)                               # (M, d)
        before = x.new_empty(len(order), 2 * hidden)
        for e, part in _parts(sizes):
            torch.mm(gathered[part], up_c[e].t(), out=before[part])
        after = gated(before, activation)                                         # (M, h)
        results = torch.empty_like(gathered)
        for e, part in _parts(sizes):
            torch.mm(after[part], down_c[e].t(), out=results[part])
        results = results.index_select(0, back).view(len(x), keep, -1)
        ctx.save_for_backward(gathered, before, after, weights, order, back, up_c, down_c)
        ctx.sizes, ctx.activation, ctx.dtypes = sizes, activation, (up.dtype, down.dtype)
        return results.mul_(weights.to(x.dtype)[..., None]).sum(1)

    @staticmethod
    def backward(ctx, grad):
        gathered, before, after, weights, order, back, up, down = ctx.saved_tensors
        keep = weights.shape[1]
        sorted_weights = weights.flatten().index_select(0, order).to(grad.dtype)[:, None]
        grad = grad.index_select(0, order // keep)                                # (M, d)
        grad_after = torch.empty_like(after)
        for e, part in _parts(ctx.sizes):
            torch.mm(grad[part], down[e], out=grad_after[part])
        # weight * expert output is linear in both, so one product serves the weight's gradient and the activation's.
        grad_weights = (grad_after * after).sum(-1, dtype=torch.promote_types(grad.dtype, torch.float32))
        grad_before = gated_backward(grad_after.mul_(sorted_weights), before, ctx.activation)
        weighted = after * sorted_weights
        learns = ctx.needs_input_grad[5]
        grad_up, grad_down = (torch.zeros_like(up), torch.zeros_like(down)) if learns else (None, None)
        grad_x = torch.empty_like(gathered)
        for e, part in _parts(ctx.sizes):
            torch.mm(grad_before[part], up[e], out=grad_x[part])
            if learns:
                torch.mm(grad[part].t(), weighted[part], out=grad_down[e])
                torch.mm(grad_before[part].t(), gathered[part], out=grad_up[e])
        grad_x = grad_x.index_select(0, back).view(len(weights), keep, -1).sum(1)
        grad_weights = grad_weights.index_select(0, back).view_as(weights).to(weights.dtype)
        if learns:
            grad_up, grad_down = grad_up.to(ctx.dtypes[0]), grad_down.to(ctx.dtypes[1])
        return grad_x, grad_weights, None, None, None, grad_up, grad_down, None


def _parts(sizes):
    """(expert, its slice of the sorted assignments) for every expert that has any."""
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            yield expert, slice(start, start + size)
        start += size

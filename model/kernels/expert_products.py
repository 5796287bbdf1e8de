"""All routed experts of a layer in one differentiable step: `experts_on_cpu`, and `grouped_experts` everywhere else.

Both give what `one_by_one` in moe.py says: x (N, d); weights, experts (N, K); up (E, 2h, d), gate rows first, or (E, h,
d); down (E, d, h) -> (N, d) in x's dtype. M = N * K assignments, P >= M rows of x, sorted by expert.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from model.layers import activate, compute_dtype, gated, gated_backward
from model.segments import take_once

# an expert's rows are a multiple of it: oneDNN compiles a kernel for every new shape, which costs more than the product
QUANTUM = 32


def sorted_places(experts, number, size):
    """experts (N, K) -> places (M,): the row of each assignment; ends (number,): the block of `size` rows at which each
    expert's rows end. An expert's rows begin with a block; all sizes are known without asking the device."""
    flat = experts.flatten()
    counts = (flat[:, None] == torch.arange(number, device=flat.device)).sum(0)
    blocks = (counts + size - 1) // size
    ends, order = blocks.cumsum(0), flat.argsort(stable=True)
    shift = (ends - blocks) * size - (counts.cumsum(0) - counts)          # of an expert's rows against its assignments
    ranks = torch.arange(len(flat), device=flat.device)
    return torch.empty_like(order).index_copy_(0, order, ranks + shift[flat[order]]), ends


# ---------------------------------------------------------------- a GPU


def grouped_experts(x, weights, experts, up, down, activation):
    """All experts in one product each way, without a word to the host.

    Where torch has a kernel for it, rows lie one after the other. Elsewhere they are padded to blocks of the mean
    number of rows, at most 2 E of them, each with a copy of its expert's matrix: what few tokens chose, or twice all.
    """
    dtype, (number, _, width) = compute_dtype(x), up.shape
    up, down, keep, total = up.to(dtype), down.to(dtype), experts.shape[1], experts.numel()
    kernel = can_group(x.device, dtype, *down.shape[1:])
    size = 1 if kernel else max(1, -(-total // number))
    count = min(total, total // size + number)                                    # of blocks, the last may be empty
    places, ends = sorted_places(experts, number, size)
    rows = x.to(dtype).repeat_interleave(keep, 0)
    rows = rows.new_zeros(count * size, width).index_copy(0, places, rows)        # (P, d)
    if kernel:
        product = grouped_products(ends)
    else:
        product = block_products(ends, count)
    results = product(activate(product(rows, up), activation), down)
    results = take_once(results, places).view(*experts.shape, -1)                 # (N, K, d)
    return (results * weights.to(dtype)[..., None]).sum(1)


def grouped_products(ends):
    """The product of rows (P, in), of which expert e has those up to ends[e], with weight (E, out, in) -> (P, out)."""
    ends = ends.to(torch.int32)
    return lambda rows, weight: F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)


def block_products(ends, count):
    """The same where ends are of `count` equal blocks of rows."""
    owner = torch.searchsorted(ends, torch.arange(count, device=ends.device), right=True).clamp_max(len(ends) - 1)
    return lambda rows, weight: torch.bmm(rows.unflatten(0, (count, -1)), weight[owner].transpose(1, 2)).flatten(0, 1)


def can_group(device, dtype, *widths):
    """Whether torch has a kernel for grouped products here: bfloat16, rows of whole 16 bytes, compute capability 9 or
    10; elsewhere it would fetch the groups' ends to the host for every product."""
    return (device.type == "cuda" and dtype == torch.bfloat16 and hasattr(F, "grouped_mm")
            and torch.cuda.get_device_capability(device)[0] in (9, 10) and all(width % 8 == 0 for width in widths))


# ---------------------------------------------------------------- a CPU


def experts_on_cpu(x, weights, experts, up, down, activation):
    """Gated activations only. One expert after the other is gathered, multiplied and activated while its rows are still
    in the cache, and nothing is kept for the backward pass that a gather brings back. Left to autograd, every expert's
    slice costs its own views, casts and concatenations, which on a CPU outweigh the products."""
    return _ExpertsOnCPU.apply(x, weights, ByExpert.of(experts, len(up)), up, down, activation)


@dataclass
class ByExpert:
    """Where the assignments lie once they are sorted by expert.

    tokens (P,): the token in each row; padding holds token 0. places (N, K): the row of each assignment. parts: for
    each expert that has any, (expert, slice of its rows).
    """

    tokens: torch.Tensor
    places: torch.Tensor
    parts: list

    @classmethod
    def of(cls, experts, number):
        """experts (N, K), `number` of experts -> ByExpert."""
        places, ends = sorted_places(experts, number, QUANTUM)
        bounds = (ends * QUANTUM).tolist()
        tokens = places.new_zeros(bounds[-1])
        tokens[places] = torch.arange(len(places)) // experts.shape[1]
        parts = [(e, slice(first, last)) for e, (first, last) in enumerate(zip([0, *bounds], bounds)) if last > first]
        return cls(tokens, places.view_as(experts), parts)


class _ExpertsOnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weights, sorted_by, up, down, activation):
        up_c, down_c = up.to(x.dtype), down.to(x.dtype)
        before = x.new_empty(len(sorted_by.tokens), up.shape[1])                  # (P, 2h)
        results = x.new_empty(len(sorted_by.tokens), x.shape[1])                  # (P, d)
        for e, part in sorted_by.parts:
            inner = torch.mm(x.index_select(0, sorted_by.tokens[part]), up_c[e].t(), out=before[part])
            torch.mm(gated(inner, activation), down_c[e].t(), out=results[part])
        ctx.save_for_backward(x, weights, before, up_c, down_c)
        ctx.sorted_by, ctx.activation, ctx.dtypes = sorted_by, activation, (up.dtype, down.dtype)
        return F.embedding_bag(sorted_by.places, results, mode="sum", per_sample_weights=weights.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weights, before, up, down = ctx.saved_tensors
        tokens, places, grad = ctx.sorted_by.tokens, ctx.sorted_by.places, grad.contiguous()
        scale = weights.new_zeros(len(tokens)).index_copy_(0, places.flatten(), weights.flatten())
        scale = scale.to(grad.dtype)[:, None]
        to_weights = weights.new_empty(len(tokens))
        grad_x = grad.new_empty(len(tokens), grad.shape[1])
        learns = any(ctx.needs_input_grad[3:5])
        grad_up, grad_down = (torch.zeros_like(up), torch.zeros_like(down)) if learns else (None, None)
        for e, part in ctx.sorted_by.parts:
            rows = grad.index_select(0, tokens[part])
            after, to_after = gated(before[part], ctx.activation), torch.mm(rows, down[e])
            # weight * expert output is linear in both: one product serves the weight's gradient and the activation's
            to_weights[part] = (to_after * after).sum(-1)
            to_before = gated_backward(to_after.mul_(scale[part]), before[part], ctx.activation)
            torch.mm(to_before, up[e], out=grad_x[part])
            if learns:                                                            # padding has weight 0, adds nothing
                torch.mm(rows.t(), after.mul_(scale[part]), out=grad_down[e])
                torch.mm(to_before.t(), x.index_select(0, tokens[part]), out=grad_up[e])
        if learns:
            grad_up, grad_down = grad_up.to(ctx.dtypes[0]), grad_down.to(ctx.dtypes[1])
        grad_weights = to_weights.index_select(0, places.flatten()).view_as(weights)
        return F.embedding_bag(places, grad_x, mode="sum"), grad_weights, None, grad_up, grad_down, None

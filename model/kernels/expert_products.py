"""All routed experts in one differentiable step, with the buffers and passes it takes and no more.

Left to autograd, every expert's slice costs its own views, casts and concatenations; on a CPU those outweigh the
products. Here one expert after the other is gathered, multiplied and activated while its rows are still in the cache,
and nothing is kept for the backward pass that a gather brings back. M = N * K assignments, P >= M slots, sorted by
expert.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from model.layers import activate, gated, gated_backward

# an expert's slots are a multiple of it: oneDNN compiles a kernel for every new shape, which costs more than the
# product
QUANTUM = 32


@dataclass
class Slots:
    """Where the assignments lie once they are sorted by expert.

    tokens (P,): the token in each slot; padding slots hold token 0. places (N, K): the slot of each assignment. parts:
    for each expert that has any, (expert, slice of its slots). counts (E,): assignments per expert.
    """

    tokens: torch.Tensor
    places: torch.Tensor
    parts: list
    counts: torch.Tensor

    @classmethod
    def of(cls, experts, number, quantum=QUANTUM):
        """experts (N, K), `number` of experts -> Slots."""
        flat = experts.flatten()
        counts = torch.bincount(flat, minlength=number)
        padded = (counts + quantum - 1) // quantum * quantum
        ends, order = padded.cumsum(0), flat.argsort(stable=True)
        # of an expert's slots against its sorted assignments
        shift = ends - padded - (counts.cumsum(0) - counts)
        slots = torch.arange(len(flat), device=flat.device) + shift.repeat_interleave(counts)
        places = torch.empty_like(order)
        places[order] = slots
        bounds = ends.tolist()
        tokens = order.new_zeros(bounds[-1])
        tokens[slots] = order // experts.shape[1]
        parts = [(e, slice(first, last)) for e, (first, last) in enumerate(zip([0, *bounds], bounds)) if last > first]
        return cls(tokens, places.view_as(experts), parts, counts)


class RoutedExperts(torch.autograd.Function):
    """sum over the K chosen experts of weight * down(act(up(x))), gated activations.

    x (N, d); weights (N, K); slots: Slots; up (E, 2h, d), gate rows first; down (E, d, h) -> (N, d) in x's dtype.
    """

    @staticmethod
    def forward(ctx, x, weights, slots, up, down, activation):
        up_c, down_c = up.to(x.dtype), down.to(x.dtype)
        before = x.new_empty(len(slots.tokens), up.shape[1])                      # (P, 2h)
        results = x.new_empty(len(slots.tokens), x.shape[1])                      # (P, d)
        for e, part in slots.parts:
            inner = torch.mm(x.index_select(0, slots.tokens[part]), up_c[e].t(), out=before[part])
            torch.mm(gated(inner, activation), down_c[e].t(), out=results[part])
        ctx.save_for_backward(x, weights, before, up_c, down_c)
        ctx.slots, ctx.activation, ctx.dtypes = slots, activation, (up.dtype, down.dtype)
        return F.embedding_bag(slots.places, results, mode="sum", per_sample_weights=weights.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weights, before, up, down = ctx.saved_tensors
        slots, learns = ctx.slots, any(ctx.needs_input_grad[3:5])
        tokens, grad = slots.tokens, grad.contiguous()
        scale = weights.new_zeros(len(tokens)).index_copy_(0, slots.places.flatten(),
                                                           weights.flatten()).to(grad.dtype)[:, None]
        to_weights = weights.new_empty(len(tokens))
        grad_x = grad.new_empty(len(tokens), grad.shape[1])
        grad_up, grad_down = (torch.zeros_like(up), torch.zeros_like(down)) if learns else (None, None)
        for e, part in slots.parts:
            rows = grad.index_select(0, tokens[part])
            after, to_after = gated(before[part], ctx.activation), torch.mm(rows, down[e])
            # weight * expert output is linear in both, so one product serves the weight's gradient and the
            # activation's.
            to_weights[part] = (to_after * after).sum(-1)
            to_before = gated_backward(to_after.mul_(scale[part]), before[part], ctx.activation)
            torch.mm(to_before, up[e], out=grad_x[part])
            # a padding slot has weight 0 and adds nothing
            if learns:
                torch.mm(rows.t(), after.mul_(scale[part]), out=grad_down[e])
                torch.mm(to_before.t(), x.index_select(0, tokens[part]), out=grad_up[e])
        if learns:
            grad_up, grad_down = grad_up.to(ctx.dtypes[0]), grad_down.to(ctx.dtypes[1])
        grad_weights = to_weights.index_select(0, slots.places.flatten()).view_as(weights)
        return F.embedding_bag(slots.places, grad_x, mode="sum"), grad_weights, None, grad_up, grad_down, None


def can_group(device, dtype, *widths):
    """Whether torch has a kernel for grouped products here: bfloat16, rows of whole 16 bytes, compute capability 9 or
    10.

    Elsewhere it would fetch the group's ends to the host for every product, where our own loop fetches them once.
    """
    return (device.type == "cuda" and dtype == torch.bfloat16 and hasattr(F, "grouped_mm")
            and torch.cuda.get_device_capability(device)[0] in (9, 10) and all(width % 8 == 0 for width in widths))


def grouped_experts(x, counts, up, down, activation):
    """down(act(up(x))) of every expert in two products, without a word to the host.

    x (M, d) sorted by expert; counts (E,); up (E, 2h or h, d); down (E, d, h) -> (M, d)
    """
    ends = counts.cumsum(0, dtype=torch.int32)
    inner = F.grouped_mm(x, up.transpose(1, 2), offs=ends)
    return F.grouped_mm(activate(inner, activation), down.transpose(1, 2), offs=ends)

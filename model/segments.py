"""How the tokens of a packed batch are arranged for attention.

Documents of different lengths lie one after the other in the flat batch. Attention must stay inside each of them, and
its cost must not grow with the row. So the documents are sorted into a few buckets of similar length; each bucket is
one dense causal attention over (documents, length). Padding sits at the end of a document, where a causal query never
looks: no mask is needed.
"""

from dataclasses import dataclass

import torch

SHRINK = 0.8   # a new bucket starts when a document is shorter than this share of the bucket's longest
GRAIN = 8      # a bucket's length is a multiple of it: a CPU compiles kernels for every new shape, so shapes must recur


@dataclass
class Segments:
    """`gather` (M,): flat token of each slot. `scatter` (N,): slot of each flat token. `shapes`: (documents, length)
    per bucket. `longest`: the length of the longest document.

    `gather` is None when the batch is one dense bucket already, the slots then are the tokens themselves.
    """

    shapes: list
    longest: int
    gather: torch.Tensor | None = None
    scatter: torch.Tensor | None = None

    @classmethod
    def dense(cls, batch, length):
        """Every row is one document of full length."""
        return cls([(batch, length)], length)

    @classmethod
    def from_lengths(cls, lengths):
        """lengths: (D,) integers, the documents' lengths in flat order; they must cover the batch without a gap."""
        lengths = torch.as_tensor(lengths, dtype=torch.long)
        if (lengths == lengths[0]).all():
            return cls.dense(len(lengths), int(lengths[0]))
        starts = lengths.cumsum(0) - lengths
        sizes, order = torch.sort(lengths, descending=True, stable=True)
        gather, shapes, scatter, base = [], [], torch.empty(int(lengths.sum()), dtype=torch.long), 0
        for first, last in _buckets(sizes.tolist()):
            longest = -(-int(sizes[first]) // GRAIN) * GRAIN
            offsets = torch.arange(longest)
            real = offsets < sizes[first:last, None]                             # (D_b, L)
            # padding repeats the document's first token
            flat = starts[order[first:last], None] + offsets * real
            gather.append(flat.flatten())
            slots = base + torch.arange(flat.numel()).view_as(flat)
            scatter[flat[real]] = slots[real]
            shapes.append((last - first, longest))
            base += flat.numel()
        return cls(shapes, int(sizes[0]), torch.cat(gather), scatter)

    def to(self, device, non_blocking=True):
        if self.gather is None:
            return self
        gather, scatter = (t.to(device, non_blocking=non_blocking) for t in (self.gather, self.scatter))
        return Segments(self.shapes, self.longest, gather, scatter)

    def pin_memory(self):
        if self.gather is None:
            return self
        return Segments(self.shapes, self.longest, self.gather.pin_memory(), self.scatter.pin_memory())


def _buckets(sizes):
    """Cut descending sizes into runs [first, last) in which none is shorter than SHRINK of the first."""
    first = 0
    for i, size in enumerate(sizes):
        if size < SHRINK * sizes[first] - 4:
            yield first, i
            first = i
    yield first, len(sizes)


class _ToSlots(torch.autograd.Function):
    """x (N, ...) -> slots (M, ...). Every token has exactly one real slot, so the gradient is a plain gather, not a
    scatter-add.

    The gradient of a padding slot is dropped. It is zero: no real query sees it and its own output is never read.
    """

    @staticmethod
    def forward(ctx, x, gather, scatter):
        ctx.save_for_backward(scatter)
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _TakeOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, places):
        ctx.save_for_backward(places)
        ctx.rows = rows.shape[0]
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx, grad):
        full = grad.new_zeros((ctx.rows, *grad.shape[1:]))
        return full.index_copy_(0, ctx.saved_tensors[0], grad), None


def to_slots(x, layout):
    return x if layout.gather is None else _ToSlots.apply(x, layout.gather, layout.scatter)


def from_slots(slots, layout):
    """slots (M, ...) -> x (N, ...)."""
    return slots if layout.gather is None else take_once(slots, layout.scatter)


def take_once(rows, places):
    """rows (M, ...) at places (N,), no two of which are the same: the gradient is a plain copy, not a scatter-add."""
    return _TakeOnce.apply(rows, places)

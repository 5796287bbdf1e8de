"""Products of a few rows with large matrices, as decoding on a CPU needs them.

Writing a token reads every weight once and computes next to nothing with it: memory sets the pace. For one row the
usual matrix product stays far below what memory can give; a weighted sum of the rows of the transposed matrix, torch's
embedding_bag, does not.

N rows, in and out: the widths of a weight (out, in).
"""

from functools import lru_cache

import torch
from torch.nn import functional as F

from model.layers import activate, gated

FEW = 4               # rows up to which the weighted sum is faster; with several cores, which share the bags, up to
FEW_SHARED = 16
IN_ORDER = 2          # tokens whose experts need no sorting
HALVED = 1 << 17      # numbers from which on each core takes one half of a matrix


def few(x):
    rows = FEW if torch.get_num_threads() == 1 else FEW_SHARED
    return len(x) <= rows and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def weighted_rows(table, places, amounts):
    """table (R, out), places (B, n) of its rows, amounts B * n numbers -> (B, out): the sum of each bag's rows times
    their amounts."""
    return torch.embedding_bag(table, places.reshape(-1), _bags(*places.shape), False, 0, False, amounts.reshape(-1))[0]


@lru_cache(maxsize=1024)
def _bags(count, size):
    with torch.inference_mode(False):
        return torch.arange(0, count * size, size, dtype=torch.int32)


class RowTable:
    """x (N, in) -> x @ weight.T (N, out). The table for few rows is made when they first come: whole batches never need
    it."""

    def __init__(self, weight, bias=None):
        self.weight, self.bias, self.table = weight, bias, None

    def __call__(self, x):
        made = self._product(x)
        return made if self.bias is None else made + self.bias

    def _product(self, x):
        if not few(x):
            return F.linear(x, self.weight)
        if self.table is None:
            self._transpose()
        rows = len(x)
        if not self.halved or torch.get_num_threads() == 1:
            return weighted_rows(self.table, self.places.expand(rows, -1), x)
        # first all rows' first halves
        halves = self.places.view(2, 1, -1).expand(-1, rows, -1).reshape(2 * rows, -1)
        return weighted_rows(self.table, halves, x.reshape(rows, 2, -1).transpose(0, 1)).view(2, rows, -1).sum(0)

    def _transpose(self):
        out, inner = self.weight.shape
        self.table = self.weight.t().contiguous()
        self.weight = self.table.t()                    # one copy is enough; a model's own weight stays with the model
        self.places = torch.arange(inner, dtype=torch.int32)[None]
        self.halved = out * inner >= HALVED and inner % 2 == 0


class DenseFeedForward:
    """A FeedForward as its weights are now."""

    def __init__(self, layer):
        self.up, self.down = (RowTable(part.weight, part.bias) for part in (layer.up, layer.down))
        self.activation = layer.activation

    def __call__(self, x):
        return self.down(activate(self.up(x), self.activation))


class ExpertTables:
    """The routed and the shared experts of a MoE side by side: all that some tokens need comes from two weighted sums,
    in a seventh of the time of ordinary products for one token, a quarter for 16 (16 experts of 256, one core).

    A shared layer of S times an expert's width is S experts that every token chooses with weight 1.
    """

    ROWS = 32           # tokens per expert, on average, from which on ordinary products are faster

    def __init__(self, moe):
        self.moe, self.shared, self.up = moe, moe.config.shared_experts, None

    def suits(self, x):
        c = self.moe.config
        return x.device.type == "cpu" and x.dtype in (torch.float32,
                                                      torch.float64) and len(x) * c.keep <= self.ROWS * c.other_experts

    def __call__(self, x, weights, experts):
        """x (N, d), weights, experts (N, K) -> routed and shared experts (N, d)."""
        if self.up is None:
            self._lay_out()
        rows, each = len(x), experts.shape[1] + self.shared
        # (M,), M = N * (K + S)
        chosen = torch.cat((experts, self.always.expand(rows, -1)), 1).flatten()
        weights = torch.cat((weights, self.ones.expand(rows, -1)), 1).view(-1, 1)
        if rows <= IN_ORDER:
            mixed = self._products(x[:, None].expand(-1, each, -1), weights, chosen)
            return mixed.view(rows, each, -1).sum(1)
        # an expert's tokens one after the other: its matrices stay in the cache
        chosen, order = chosen.sort()
        tokens = order // each
        return torch.zeros_like(x).index_add_(0, tokens, self._products(x[tokens], weights[order], chosen))

    def _products(self, x, weights, chosen):
        """x: M rows of width d; weights (M, 1); chosen (M,) experts -> (M, d)."""
        inner = weighted_rows(self.up, self.up_places[chosen], x)
        inner = gated(inner, self.moe.config.activation).mul_(weights)                                # (M, h)
        return weighted_rows(self.down, self.down_places[chosen], inner)

    def _lay_out(self):
        moe, shared = self.moe, self.shared
        experts, width, hidden = moe.up.shape[0] + shared, moe.down.shape[1], moe.down.shape[2]
        up = moe.shared.up.weight.view(2, shared, hidden, width).transpose(0, 1).reshape(shared, 2 * hidden, width)
        down = moe.shared.down.weight.view(width, shared, hidden).permute(1, 2, 0)                    # (S, h, d)
        self.up = torch.cat((moe.up, up)).transpose(1, 2).reshape(experts * width, 2 * hidden)
        self.down = torch.cat((moe.down.transpose(1, 2), down)).reshape(experts * hidden, width)
        self.up_places = torch.arange(experts * width, dtype=torch.int32).view(experts, width)
        self.down_places = torch.arange(experts * hidden, dtype=torch.int32).view(experts, hidden)
        self.always = torch.arange(moe.up.shape[0], experts)[None]
        self.ones = moe.up.new_ones(1, shared)

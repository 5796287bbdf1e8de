"""What decoding prepares of a model once, instead of at every token.

All matrices are made ready for one row (see few_rows.py). Latent attention has its matrices multiplied out as well:
half the products and a third of the steps per token.
Three pairs of neighbouring projections become one each: q_down and kv_down read the same input; the key half of kv_up
meets every query right after q_up; the value half of kv_up goes straight into out. What is computed stays the same up
to rounding.
"""

import torch

from model.attention import MLA, grouped
from model.decoding.few_rows import DenseFeedForward, ExpertTables, RowTable
from model.layers import FeedForward, is_gated, rotate


class FoldedMLA:
    """Made from an MLA as its weights are now, adapters on its projections included; N, H, d_c, d_r as in
    attention.py."""

    @staticmethod
    def fits(attention):
        """A prefix looks at the queries before they meet kv_up, so it cannot be folded."""
        return isinstance(attention, MLA) and not attention.prefixes

    def __init__(self, attention):
        c, weight = attention.config, {name: child.weight for name, child in attention.named_children()
                                       if hasattr(child, "weight")}
        self.heads, self.latent, self.rotary, self.scale = c.n_head, c.d_c, attention.rotary, attention.scale
        self.q_norm, self.kv_norm = attention.q_norm, attention.kv_norm
        self.parts = [c.query_latent, c.d_c, self.rotary]
        exact = weight["out"].dtype in (torch.float32, torch.float64)
        self.paired = exact and not any(width % 2 for width in (*self.parts, c.d_h))
        up = weight["kv_up"].view(c.n_head, 2, c.d_h, c.d_c)
        # (H, d_h + d_r, d_q)
        query = weight["q_up"].view(c.n_head, attention.key_width, -1)
        content = torch.bmm(up[:, 0].transpose(1, 2), query[:, :c.d_h])                               # (H, d_c, d_q)
        # (d_q + d_c + d_r, d_model)
        self.inward = RowTable(torch.cat((weight["q_down"], weight["kv_down"])))
        # (H * (d_c + d_r), d_q)
        self.query = RowTable(torch.cat((content, query[:, c.d_h:]), 1).flatten(0, 1))
        # (H, d_model, d_h)
        outward = weight["out"].view(-1, c.n_head, c.d_h).transpose(0, 1)
        # (d_model, H * d_c)
        self.outward = RowTable(torch.bmm(outward, up[:, 1]).transpose(0, 1).flatten(1))

    def decode(self, x, step, kv):
        """The same as MLA.decode with absorbed attention."""
        q, latent, turning = torch.split_with_sizes(self.inward(x), self.parts, -1)
        # (N, H, d_c + d_r)
        q = self.query(self.q_norm(q)).view(len(x), self.heads, -1)
        if self.rotary:
            self.turn(q[..., self.latent:], step)
            self.turn(turning[:, None], step)
        step.write(kv, torch.cat((self.kv_norm(latent), turning), -1))
        past = step.read(kv)[:, None]
        mixed = grouped(q, past, past, step, self.scale)[..., :self.latent]                           # (N, H, d_c)
        return self.outward(mixed.flatten(1))

    def turn(self, x, step):
        """Rotates x (N, H, d_r) in place: a pair of neighbours is a complex number, its rotation one product."""
        if self.paired:
            torch.view_as_complex(x.view(len(x), -1, self.rotary // 2, 2)).mul_(step.turns)
        else:
            x.copy_(rotate(x, step.tables))


class Folded:
    """What is prepared of one block. attention: a FoldedMLA or None; mlp: a DenseFeedForward, or ExpertTables, or None
    where adapters stand in between."""

    def __init__(self, block):
        self.attention = FoldedMLA(block.attention) if FoldedMLA.fits(block.attention) else None
        if isinstance(block.mlp, FeedForward):
            self.mlp = DenseFeedForward(block.mlp)
        else:
            self.mlp = ExpertTables(block.mlp) if not block.mlp.adapted and is_gated(
                block.mlp.config.activation) else None


class FoldedModel:
    """A model as its weights are now. blocks: a Folded for each; heads: head 1 and, where there is one, head 2, hidden
    states (N, d) -> logits (N, V)."""

    @torch.inference_mode()
    def __init__(self, model):
        self.blocks = [Folded(block) for block in model.blocks]
        self.heads = [head if model.config.counted else RowTable(head.weight) for head in model.heads()]

"""Prefixes: learned keys and values in front of every layer's attention, or re-learned embeddings of the role tokens.

N tokens, H heads, P positions of the prefix, d_h content dimensions per head.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Prefix(nn.Module):
    """P learned keys and values that every query of one attention layer reads, whatever its position.

    They have a softmax of their own, and what is read is added through a gate per head. The gate starts at zero and the
    values do not: the first step is the base model's, and yet the gate has a gradient (as in LLaMA-Adapter,
    arXiv:2303.16199).
    """

    def __init__(self, config, length):
        super().__init__()
        self.scale = 1.0 / math.sqrt(config.d_h)
        self.keys = nn.Parameter(torch.randn(length, config.n_head, config.d_h))
        self.values = nn.Parameter(torch.randn(length, config.n_head, config.d_h))
        self.gate = nn.Parameter(torch.zeros(config.n_head))

    def forward(self, q):
        """q (N, H, d_h) -> (N, H * d_h). Each query stands alone, so a decoder has nothing to remember of a prefix."""
        keys, values = self.keys.to(q.dtype), self.values.to(q.dtype)
        scores = torch.einsum("nhw,phw->nhp", q, keys) * self.scale
        share = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)
        read = torch.einsum("nhp,phw->nhw", share.to(values.dtype), values)
        return (read * self.gate.to(read.dtype)[:, None]).flatten(1)


class RoleEmbedding(nn.Module):
    """An embedding in which a few rows, those of `ids`, are learned anew while `base` stays as it is."""

    def __init__(self, base, ids):
        super().__init__()
        self.base = base
        self.register_buffer("ids", torch.tensor(ids, device=base.weight.device), persistent=False)
        self.rows = nn.Parameter(base.weight.detach()[self.ids].clone())

    def forward(self, ids):
        same = ids[..., None] == self.ids                                         # (..., roles)
        anew = F.embedding(same.int().argmax(-1), self.rows)
        return torch.where(same.any(-1, keepdim=True), anew, self.base(ids))

    @property
    def weight(self):
        """(V, d), the table in effect."""
        return self.base.weight.index_copy(0, self.ids, self.rows)


def apply_prefix(model, kind="kv", length=16, ids=()):
    """Freeze `model`, give it a prefix and return it. ValueError if it cannot.

    kind "kv": `length` learned keys and values in every layer. kind "role": the embeddings of the tokens `ids` are
    learned anew.
    """
    model.requires_grad_(False)
    if kind == "role":
        if not ids or not all(0 <= i < model.config.vocab_size for i in ids):
            raise ValueError(f"role ids {list(ids)} must be ids of the vocabulary")
        model.embed = RoleEmbedding(model.embed, list(ids))
    elif kind == "kv":
        if length < 1:
            raise ValueError(f"a prefix needs at least one position, not {length}")
        example = model.embed.weight
        for block in model.blocks:
            block.attention.prefixes.append(Prefix(model.config, length).to(example.device, example.dtype))
    else:
        raise ValueError(f"prefix kind must be kv or role, not {kind!r}")
    return model

"""A memory adapter: latent rows in chapters, of which every token reads a few by cross-attention.

The router looks at one token at a time. (One that pools the sequence would tell early tokens about later ones; it is
not offered.) N tokens, C chapters, k of them per token, M rows in all, w their width, H heads.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.layers import make_norm, without_autocast
from model.lora import add_lora


@dataclass
class ChapterRouting:
    """What one layer's chapter router did: logits (N, C) with a gradient, the chapters (N, k) that each token read."""

    logits: torch.Tensor
    chapters: torch.Tensor


class MemoryBank(nn.Module):
    """The rows (M, w) themselves, one set that all layers read."""

    def __init__(self, tokens, width):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(tokens, width))

    def forward(self):
        return self.rows


class Memory(nn.Module):
    """One layer's way into the bank. The output projection starts at zero: a new adapter changes nothing."""

    def __init__(self, config, bank, chapters, topk):
        super().__init__()
        tokens, width = bank.rows.shape
        self.bank, self.topk = bank, topk
        self.heads = math.gcd(config.n_head, width)
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.router = nn.Linear(config.d_model, chapters, bias=False)
        self.query = nn.Linear(config.d_model, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, config.d_model, bias=False)
        self.per_chapter = tokens // chapters
        nn.init.normal_(self.router.weight, std=config.init_std)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=layer.in_features ** -0.5)
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        """x (N, d) -> (N, d), ChapterRouting."""
        x = self.norm(x)
        logits, chapters = self.route(x)
        query = self.query(x).unflatten(-1, (self.heads, -1))                     # (N, H, w / H)
        rows = self.bank()
        key, value = (f(rows).unflatten(-1, (self.heads, -1)) for f in (self.key, self.value))     # (M, H, w / H)
        scores = torch.einsum("nhw,mhw->nhm", query, key) / math.sqrt(key.shape[-1])
        scores = scores.to(logits.dtype) + self.openness(logits, chapters)[:, None]
        mixed = torch.einsum("nhm,mhw->nhw", scores.softmax(-1).to(value.dtype), value)
        return self.out(mixed.flatten(1)), ChapterRouting(logits, chapters)

    def route(self, x):
        """x (N, d) -> logits (N, C) in float32 or wider, the k chapters of each token (N, k)."""
        with without_autocast(x):
            wide = torch.promote_types(x.dtype, torch.float32)
            logits = F.linear(x.to(wide), self.router.weight.to(wide))
        return logits, logits.topk(self.topk, -1).indices

    def openness(self, logits, chapters):
        """(N, M) to add to the attention scores: -inf for the rows of closed chapters, log p of their chapter for the
        others.

        So a chapter is read in proportion to its probability, and the router learns from the model's own loss.
        """
        closed = torch.ones_like(logits, dtype=torch.bool).scatter(1, chapters, False)
        return logits.log_softmax(-1).masked_fill(closed, float("-inf")).repeat_interleave(self.per_chapter, -1)


def apply_memory(model, tokens=64, chapters=8, topk=2, layers=None, lora=None, train_base=False):
    """Give `model` a memory of `tokens` rows in `chapters`, read in `layers` (numbers from 0, None = all). Returns the
    model.

    Only the adapter has gradients afterwards, and everything if train_base. lora: keywords of `apply_lora`, to train
    both at once. ValueError for numbers that do not go together.
    """
    count = model.config.n_layer
    layers = list(range(count)) if layers is None else layers
    if not layers or not all(0 <= i < count for i in layers) or len(set(layers)) < len(layers):
        raise ValueError(f"memory layers {layers} must be different numbers from 0 to {count - 1}")
    if tokens % chapters or not 1 <= topk <= chapters:
        raise ValueError(f"{tokens} memory rows, {chapters} chapters and {topk} of them per token do not go together")
    model.requires_grad_(train_base)
    example = model.embed.weight
    bank = MemoryBank(tokens, model.config.d_c)
    for i in layers:
        memory = Memory(model.config, bank, chapters, topk).to(example.device, example.dtype)
        model.blocks[i].memories.append(memory)
    if lora:
        add_lora(model, **lora)
    return model

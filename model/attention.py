"""Attention inside each document of a packed batch: MLA (DeepSeek-V2) and grouped-query attention.

N tokens of the flat batch, H heads, G key/value heads, d_h content and d_r rotary dimensions per head, d_c latent
width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from model.kernels import short_attention
from model.layers import alibi_slopes, make_norm, rotate
from model.segments import from_slots, to_slots

QUERIES = 256     # that meet a bias (window, ALiBi) at once


class MLA(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Keys and values of a token come from one latent of width d_c; only it and one rotated key of width d_r shared by all
    heads need to be kept for decoding.
    """

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.q_down = nn.Linear(c.d_model, c.query_latent, bias=False)
        self.q_norm = make_norm(c.norm, c.query_latent, c.norm_eps)
        self.q_up = nn.Linear(c.query_latent, c.n_head * self.key_width, bias=False)
        self.kv_down = nn.Linear(c.d_model, c.d_c + self.rotary, bias=False)
        self.kv_norm = make_norm(c.norm, c.d_c, c.norm_eps)
        self.kv_up = nn.Linear(c.d_c, c.n_head * 2 * c.d_h, bias=False)           # per head: key content, then value
        self.out = nn.Linear(c.n_head * c.d_h, c.d_model, bias=False)
        self.prefixes = nn.ModuleList()                                           # see model/prefix.py

    @property
    def rotary(self):
        """Rotary key width; without rotary positions the decoupled part would carry nothing."""
        return self.config.d_r if self.config.position == "rope" else 0

    @property
    def key_width(self):
        return self.config.d_h + self.rotary

    @property
    def scale(self):
        return self.config.sharpness / math.sqrt(self.key_width)

    def queries(self, x, tables):
        """x (N, d_model) -> (N, H, d_h + d_r), the rotary part rotated."""
        c = self.config
        q = self.q_up(self.q_norm(self.q_down(x))).view(-1, c.n_head, self.key_width)
        if not self.rotary:
            return q
        content, turning = q.split([c.d_h, self.rotary], -1)
        return torch.cat((content, rotate(turning, tables)), -1)

    def latents(self, x, tables):
        """x (N, d_model) -> latent (N, d_c), rotated shared key (N, d_r): all that a decoder has to remember."""
        latent, turning = self.kv_down(x).split([self.config.d_c, self.rotary], -1)
        if self.rotary:
            turning = rotate(turning[:, None], tables)[:, 0]
        return self.kv_norm(latent), turning

    def expand(self, latent, turning):
        """latent (..., d_c), turning (..., d_r) -> keys (..., H, d_h + d_r), values (..., H, d_h)."""
        c = self.config
        key, value = self.kv_up(latent).unflatten(-1, (c.n_head, 2 * c.d_h)).split(c.d_h, -1)
        if self.rotary:
            turning = turning[..., None, :].expand(*key.shape[:-1], self.rotary)
            key = torch.cat((key, turning.to(key.dtype)), -1)
        return key, value

    def forward(self, x, tables, layout):
        q = self.queries(x, tables)
        k, v = self.expand(*self.latents(x, tables))
        return self.finish(q, attend(q, k, v, layout, self.config, self.scale))

    def finish(self, q, mixed):
        """q (N, H, d_k), mixed (N, H * d_h): what the heads read -> (N, d_model)."""
        for prefix in self.prefixes:
            mixed = mixed + prefix(q[..., :self.config.d_h])
        return self.out(mixed)

    def decode(self, x, step, kv):
        """x (N, d_model): B rows of T new tokens -> (N, d_model). Their latents are added to kv (S, C, d_c + d_r)."""
        q = self.queries(x, step.tables)
        step.write(kv, torch.cat(self.latents(x, step.tables), -1))
        past = step.read(kv)                                                      # (B, L, d_c + d_r)
        return self.finish(q, self.absorbed(q, past, step) if step.absorb else self.expanded(q, past, step))

    def expanded(self, q, past, step):
        """Attention to keys and values made of all latents: right for many new tokens."""
        return naive(q, *self.expand(*past.split([self.config.d_c, self.rotary], -1)), step, self.scale)

    def absorbed(self, q, past, step):
        """Attention to the latents themselves, the same up to rounding: the key half of kv_up is folded into the query,
        the value half applied after."""
        c = self.config
        up = self.kv_up.weight.view(c.n_head, 2, c.d_h, c.d_c)
        content = q[..., :c.d_h].transpose(0, 1)                                  # (H, N, d_h)
        query = torch.bmm(content, up[:, 0]).transpose(0, 1)                      # (N, H, d_c)
        if self.rotary:
            query = torch.cat((query, q[..., c.d_h:]), -1)                        # (N, H, d_c + d_r)
        # (B, 1, L, d_c + d_r): one key head for all
        past = past[:, None]
        # (N, H, d_c); the rotary columns are dropped
        mixed = grouped(query, past, past, step, self.scale)[..., :c.d_c]
        return torch.bmm(mixed.transpose(0, 1), up[:, 1].transpose(1, 2)).transpose(0, 1).flatten(1)


class GQA(nn.Module):
    """Multi-head attention in which H / G query heads share one key/value head (Ainslie et al. 2023,
    arXiv:2305.13245)."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.q = nn.Linear(c.d_model, c.n_head * c.d_h, bias=c.bias != "none")
        self.kv = nn.Linear(c.d_model, 2 * c.kv_heads * c.d_h, bias=c.bias != "none")     # all keys, then all values
        if c.qk_norm:                                                             # Henry et al. 2020, arXiv:2010.04245
            self.q_norm, self.k_norm = (make_norm("rms", c.d_h, c.norm_eps) for _ in range(2))
        self.out = nn.Linear(c.n_head * c.d_h, c.d_model, bias=c.bias == "all")
        self.prefixes = nn.ModuleList()                                           # see model/prefix.py

    @property
    def scale(self):
        return self.config.sharpness / math.sqrt(self.config.d_h)

    def queries(self, x, tables):
        q = self.q(x).view(-1, self.config.n_head, self.config.d_h)
        if self.config.qk_norm:
            q = self.q_norm(q)
        return rotate(q, tables) if self.config.position == "rope" else q

    def latents(self, x, tables):
        """x (N, d_model) -> keys and values (N, G * d_h) each: what a decoder has to remember."""
        k, v = self.kv(x).chunk(2, -1)
        if self.config.qk_norm:
            k = self.k_norm(k.unflatten(-1, (self.config.kv_heads, -1))).flatten(-2)
        if self.config.position == "rope":
            k = rotate(k.unflatten(-1, (self.config.kv_heads, -1)), tables).flatten(-2)
        return k, v

    def expand(self, keys, values):
        """(..., G * d_h) each -> (..., H, d_h) each, every key/value head repeated for its group."""
        c = self.config
        shape, group = (c.kv_heads, c.d_h), c.n_head // c.kv_heads
        return tuple(t.unflatten(-1, shape).repeat_interleave(group, -2) for t in (keys, values))

    def forward(self, x, tables, layout):
        q = self.queries(x, tables)
        k, v = self.expand(*self.latents(x, tables))
        return self.finish(q, attend(q, k, v, layout, self.config, self.scale))

    def finish(self, q, mixed):
        """q (N, H, d_k), mixed (N, H * d_h): what the heads read -> (N, d_model)."""
        for prefix in self.prefixes:
            mixed = mixed + prefix(q)
        return self.out(mixed)

    def decode(self, x, step, kv):
        """x (N, d_model): B rows of T new tokens -> (N, d_model). Keys and values are added to kv (S, C, 2 * G *
        d_h)."""
        q = self.queries(x, step.tables)
        step.write(kv, torch.cat(self.latents(x, step.tables), -1))
        keys, values = step.read(kv).chunk(2, -1)                                 # (B, L, G * d_h)
        if not step.absorb:
            return self.finish(q, naive(q, *self.expand(keys, values), step, self.scale))
        # (B, G, L, d_h)
        keys, values = (t.unflatten(-1, (self.config.kv_heads, -1)).transpose(1, 2) for t in (keys, values))
        return self.finish(q, grouped(q, keys, values, step, self.scale).flatten(1))


def attend(q, k, v, layout, config, scale):
    """q, k: (N, H, d_k), v: (N, H, d_v) -> (N, H * d_v); causal, inside each document, fused where torch can."""
    q, k, v = (to_slots(t, layout) for t in (q, k, v))
    outputs, base = [], 0
    for documents, length in layout.shapes:
        part = slice(base, base + documents * length)
        base += documents * length
        bq, bk, bv = (t[part].unflatten(0, (documents, length)) for t in (q, k, v))                     # (D, L, H, d)
        outputs.append(_causal(bq, bk, bv, config, scale).flatten(0, 1))                               # (D * L, H, d_v)
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return from_slots(joined.flatten(1), layout)


def grouped(q, k, v, step, scale):
    """Few new tokens against a cache. q (N, H, d_k); k, v (B, G, L, d): G key heads, each read by H / G query heads ->
    (N, H, d)."""
    rows, groups, (count, heads, width) = k.shape[0], k.shape[1], q.shape
    q = q.reshape(rows, step.length, groups, -1, width).transpose(1, 2).flatten(2, 3)             # (B, G, T * g, d)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=step.grouped_bias(groups, heads), scale=scale)
    mixed = mixed.view(rows, groups, step.length, -1, mixed.shape[-1])                                # (B, G, T, g, d)
    return mixed.transpose(1, 2).reshape(count, heads, -1)


def naive(q, k, v, step, scale):
    """Many new tokens against keys and values of every head. q (N, H, d_k), k, v (B, L, H, d) -> (N, H * d_v)."""
    q = q.unflatten(0, (-1, step.length))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    width = v.shape[-1]
    if k.shape[-1] != width and q.device.type == "cpu":
        v = F.pad(v, (0, k.shape[-1] - width))                                    # as in _causal
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=step.bias, scale=scale)
    return mixed[..., :width].transpose(1, 2).flatten(2).flatten(0, 1)


def _causal(q, k, v, config, scale):
    """q, k: (D, L, H, d_k), v: (D, L, H, d_v) -> (D, L, H, d_v)."""
    length, width = q.shape[1], v.shape[-1]
    window = config.sliding_window if config.sliding_window and config.sliding_window < length else None
    biased = config.position == "alibi" or window
    if not biased and short_attention.applies(q, length):
        return short_attention.short_causal_attention(q, k, v, scale)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if k.shape[-1] != width and q.device.type == "cpu":
        v = F.pad(v, (0, k.shape[-1] - width))     # the fused CPU kernel wants keys and values of one width
    if biased:
        mixed = _biased(q, k, v, config, window, scale)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return mixed[..., :width].transpose(1, 2)


def _biased(q, k, v, config, window, scale):
    """(D, H, L, d) each -> (D, H, L, d). QUERIES at a time, against the keys that they can see: no bias over the whole
    square."""
    parts, length = [], q.shape[2]
    for first in range(0, length, QUERIES):
        last = min(first + QUERIES, length)
        low = max(0, first - window + 1) if window else 0
        bias = attention_bias(config, q.shape[1], torch.arange(first, last, device=q.device),
                              torch.arange(low, last, device=q.device))
        parts.append(F.scaled_dot_product_attention(q[:, :, first:last], k[:, :, low:last], v[:, :, low:last],
                                                    attn_mask=bias.to(q.dtype), scale=scale))
    return torch.cat(parts, 2)


def attention_bias(config, heads, queries, keys):
    """An additive float mask (..., 1 or H, T, L) from the positions of queries (..., T) and keys (L,).

    Sliding window W: key j is seen iff i - W < j <= i. ALiBi: slope * (j - i). Computed when needed, never stored.
    """
    distance = (queries[..., None] - keys)[..., None, :, :]                       # i - j (..., 1, T, L)
    hidden = distance < 0
    if config.sliding_window is not None:
        hidden |= distance >= config.sliding_window
    if config.position == "alibi":
        bias = -alibi_slopes(heads, distance.device)[:, None, None] * distance
    else:
        bias = torch.zeros_like(distance, dtype=torch.float32)
    return bias.masked_fill(hidden, float("-inf"))

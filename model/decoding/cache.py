"""What a decoder remembers of the tokens it has read: d_c + d_r numbers per token and layer (MLA), or keys and values
(GQA).

A cache has S slots, one sequence in each. Slots are independent: they have lengths of their own, are filled in chunks,
cut back and emptied one by one, so that replies can come and go while others are being written (see `TinySeek.decode`).
"""

from functools import cached_property

import torch
from torch.nn import functional as F

from model.attention import attention_bias
from model.decoding.folded import FoldedModel
from model.kernels.ngram_head import NO_ID
from model.layers import rotary_tables


class DecodeCache:
    """S slots of up to `capacity` tokens; grows by itself. `lengths[s]`: tokens that slot s holds, a plain list of
    ints.

        cache = DecodeCache.of(model, slots=2, capacity=64)
        hidden = model.decode(torch.tensor([[1, 9, 20]]), cache, slots=[0])       # reads a prompt into slot 0
        hidden = model.decode(torch.tensor([[21], [30]]), cache, slots=[0, 1])    # one more for slot 0, a first for 1
        cache.lengths                                                             # [4, 1]
        cache.truncate(0, 3)                                                      # forget the last token of slot 0
        cache.clear(1)                                                            # slot 1 is free again
    """

    # New tokens up to which attention goes to the latents as they are; more are expanded to keys and values.
    absorb_up_to = 32

    def __init__(self, config, slots, capacity, device="cpu", dtype=torch.float32):
        self.config = config
        self.lengths = [0] * slots
        self.kv = [torch.zeros(slots, 0, cache_width(config), device=device, dtype=dtype)
                   for _ in range(config.n_layer)]
        # what was read
        self.tokens = torch.zeros(slots, 0, 1, device=device, dtype=torch.long) if config.counted else None
        # a Folded per block, or None: then the blocks' own weights are used as they are
        self.folded = [None] * config.n_layer
        self.capacity = 0
        self.reserve(max(capacity, 1))

    @classmethod
    def of(cls, model, slots, capacity, prepared=None):
        """A cache on the model's device and in its precision. It keeps products of the model's weights as they are now:
        make another one when they have changed.

        prepared: a dict kept between calls while the weights stay what they are; then they are prepared once.
        """
        weight, prepared = model.embed.weight, {} if prepared is None else prepared
        cache = cls(model.config, slots, capacity, weight.device, weight.dtype)
        if model not in prepared:
            prepared[model] = FoldedModel(model)
        cache.folded, cache.heads = prepared[model].blocks, prepared[model].heads
        return cache

    def reserve(self, capacity):
        """Make room for `capacity` tokens per slot; what is there stays."""
        if capacity <= self.capacity:
            return
        capacity = max(capacity, 2 * self.capacity)
        old = self.kv
        self.kv = [m.new_zeros(m.shape[0], capacity, m.shape[2]) for m in old]
        for new, m in zip(self.kv, old):
            new[:, :self.capacity] = m
        if self.tokens is not None:
            self.tokens = F.pad(self.tokens, (0, 0, 0, capacity - self.capacity))
        self.capacity = capacity
        if self.config.position == "rope":
            positions = torch.arange(capacity, device=old[0].device)
            wide = torch.promote_types(old[0].dtype, torch.float32)
            cos, sin = rotary_tables(positions, *self.config.rope)
            self.turns = torch.complex(cos.to(wide), sin.to(wide))[:, None]                            # (C, 1, d_r / 2)

    def logits(self, last, slots=None):
        """Head 1 after the last token of each of `slots` (None = all, in order): hidden states (B, d) -> (B, V)."""
        if self.tokens is None:
            return self.heads[0](last)
        slots = range(len(self.lengths)) if slots is None else slots
        rows, lengths = self.tokens[list(slots), :, 0], [self.lengths[s] for s in slots]               # (B, C)
        places = torch.tensor(lengths)[:, None] - torch.arange(1, self.config.counted)
        places = places.to(last.device)                                                                # (B, P)
        return self.heads[0](last, torch.where(places >= 0, rows.gather(1, places.clamp_min(0)), NO_ID))

    def clear(self, slot):
        self.lengths[slot] = 0

    def move(self, source, target):
        """Slot `target` takes over what slot `source` holds, which is empty afterwards."""
        length = self.lengths[source]
        for m in self.kv if self.tokens is None else [*self.kv, self.tokens]:
            m[target, :length] = m[source, :length]
        self.lengths[target], self.lengths[source] = length, 0

    def truncate(self, slot, length):
        """Forget all but the first `length` tokens of a slot."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def keep(self, slots):
        """Drop every slot that is not listed; slots[i] becomes slot i."""
        index = torch.tensor(slots, device=self.kv[0].device)
        self.kv = [m.index_select(0, index) for m in self.kv]
        self.tokens = None if self.tokens is None else self.tokens.index_select(0, index)
        self.lengths = [self.lengths[s] for s in slots]

    def bytes_per_token(self):
        return sum(m.shape[2] * m.element_size() for m in self.kv)


def cache_width(config):
    """Numbers remembered per token and layer."""
    if config.attention == "gqa":
        return 2 * config.kv_heads * config.d_h
    return config.d_c + (config.d_r if config.position == "rope" else 0)


class Step:
    """The places of one decode call, worked out once for all layers: B rows of T new tokens, L keys that they may see.

    rows: the slots, a slice where they are neighbours (then nothing is copied). positions (N,), `places` (N,) the same
    among all slots' places; low, high: the keys read, high - low = L. bias (B or 1, H or 1, T, L) or None. turns (N, 1,
    d_r / 2): what rotates, complex, or None. absorb: see DecodeCache.absorb_up_to.
    """

    def __init__(self, cache, slots, length):
        config, device, starts = cache.config, cache.kv[0].device, [cache.lengths[s] for s in slots]
        self.length, self.absorb, self._grouped = length, length <= cache.absorb_up_to, None
        self.low = max(0, min(starts) + 1 - config.sliding_window) if config.sliding_window else 0
        self.high = max(starts) + length
        cache.reserve(self.high)
        neighbours = all(b == a + 1 for a, b in zip(slots, slots[1:]))
        self.rows = slice(slots[0], slots[0] + len(slots)) if neighbours else torch.tensor(slots, device=device)
        positions = [start + i for start in starts for i in range(length)]
        places = [slot * cache.capacity + start + i for slot, start in zip(slots, starts) for i in range(length)]
        self.positions, self.places = torch.tensor([positions, places], device=device)
        self.turns = cache.turns[self.positions] if config.position == "rope" else None
        self.bias = self._bias(config, min(starts) == max(starts), cache.kv[0].dtype)

    @cached_property
    def tables(self):
        """cos, sin (N, d_r / 2), or None."""
        return None if self.turns is None else (self.turns.real[:, 0], self.turns.imag[:, 0])

    def _bias(self, config, level, dtype):
        """level: all rows begin at one position. None: each row's one token sees all that is read."""
        if level and self.length == 1 and config.position != "alibi":
            return None
        queries = self.positions.unflatten(0, (-1, self.length))[:1 if level else None]                # (B or 1, T)
        keys = torch.arange(self.low, self.high, device=queries.device)
        return attention_bias(config, config.n_head, queries, keys).to(dtype)

    def grouped_bias(self, groups, heads):
        """The bias for queries that share G key heads: (B or 1, G or 1, T * g, L), g = H / G, or None. The same in
        every layer."""
        if self.bias is None or self.length == 1 and self.bias.shape[1] == 1:
            return self.bias
        if self._grouped is None:
            bias = self.bias.expand(-1, heads, -1, -1).unflatten(1, (groups, -1))                      # (B, G, g, T, L)
            self._grouped = bias.transpose(2, 3).flatten(2, 3)
        return self._grouped

    def write(self, kv, new):
        """kv (S, C, w) takes new (N, w) at the rows' next places."""
        kv.flatten(0, 1).index_copy_(0, self.places, new.to(kv.dtype))

    def read(self, kv):
        """-> (B, L, w)."""
        return kv[self.rows, self.low:self.high]

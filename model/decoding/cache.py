"""What a decoder remembers of the tokens it has read: d_c + d_r numbers per token and layer (MLA), or keys and values
(GQA).

A cache has S slots, one sequence in each. Slots are independent: they have lengths of their own, are filled in chunks,
cut back and emptied one by one, so that replies can come and go while others are being written (see `TinySeek.decode`).
"""

import torch
from torch.nn import functional as F

from model.kernels.ngram_head import NOTHING
from model.decoding.folded import folded
from model.layers import alibi_slopes, rotary_tables


class DecodeCache:
    """S slots of up to `capacity` tokens; grows by itself. `lengths[s]`: tokens that slot s holds, a plain list of
    ints.

        cache = DecodeCache.of(model, slots=2, capacity=64)
        hidden = model.decode(torch.tensor([[1, 9, 20]]), cache, slots=[0])       # reads a prompt into slot 0
        hidden = model.decode(torch.tensor([[21], [30]]), cache, slots=[0, 1])    # one more token for slot 0, a first
        for slot 1
        cache.lengths                                                             # [4, 1]
        cache.truncate(0, 3)                                                      # forget the last token of slot 0
        cache.clear(1)                                                            # slot 1 is free again
    """

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
    def of(cls, model, slots, capacity):
        """A cache on the model's device and in its precision. It keeps products of the model's weights as they are now:
        make another one when they have changed.
        """
        weight = model.embed.weight
        cache = cls(model.config, slots, capacity, weight.device, weight.dtype)
        made = folded(model)
        cache.folded, cache.heads = made.blocks, made.heads
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
            at = torch.arange(capacity, device=old[0].device)
            self.cos, self.sin = rotary_tables(at, self.config.rotary_width, self.config.ro_theta)
            wide = old[0].dtype in (torch.float32, torch.float64)
            # (C, 1, d_r / 2)
            self.turns = torch.complex(self.cos.to(old[0].dtype), self.sin.to(old[0].dtype))[:, None] if wide else None

    def logits(self, last, slots=None):
        """Head 1 after the last token of each of `slots` (None = all, in order): hidden states (B, d) -> (B, V)."""
        if self.tokens is None:
            return self.heads[0](last)
        rows = self.tokens[:, :, 0] if slots is None else self.tokens[list(slots), :, 0]                       # (B, C)
        lengths = self.lengths if slots is None else [self.lengths[s] for s in slots]
        at = torch.tensor(lengths)[:, None] - torch.arange(1, self.config.counted)
        at = at.to(last.device)                                                                                # (B, P)
        return self.heads[0](last, torch.where(at >= 0, rows.gather(1, at.clamp_min(0)), NOTHING))

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

    `rows`: the slots, a slice where they are neighbours (then nothing is copied). `first`: where all rows begin, None
    when they differ. `low`, `high`: the keys read, high - low = L. `bias` (B or 1, H or 1, T, L) or None. `absorb`:
    attend to latents as they are (few new tokens) instead of expanding them to keys and values (many).
    """

    ABSORB_UP_TO = 32

    def __init__(self, cache, slots, length, absorb=None):
        starts = [cache.lengths[s] for s in slots]
        self.length, self.rows, device = length, _as_slice(slots, cache.kv[0].device), cache.kv[0].device
        self.first = starts[0] if min(starts) == max(starts) else None
        self.high = max(starts) + length
        cache.reserve(self.high)
        window = cache.config.sliding_window
        self.low = 0 if window is None else max(0, min(starts) + 1 - window)
        self.absorb = length <= self.ABSORB_UP_TO if absorb is None else absorb
        self.at, self._grouped = None, None
        if self.first is None:
            self.at = torch.tensor(starts, device=device)[:, None] + torch.arange(length, device=device)       # (B, T)
            self.slots = torch.tensor(slots, device=device)[:, None]
        self.causal = self.first == 0 and length > 1 and _plain(cache.config, length)
        self.bias = self._bias(cache.config, device, cache.kv[0].dtype)
        self.tables, self.turns = self._tables(cache, len(slots))

    def positions(self, device):
        """(B or 1, T)."""
        if self.at is not None:
            return self.at
        return torch.arange(self.first, self.first + self.length, device=device)[None]

    def _tables(self, cache, rows):
        """(cos, sin) (N, d_r / 2) each, and both as complex numbers (N, 1, d_r / 2)."""
        if cache.config.position != "rope":
            return None, None
        if self.first is not None and rows == 1:
            at = slice(self.first, self.first + self.length)
        elif self.first is not None:
            at = torch.arange(self.first, self.first + self.length, device=cache.cos.device).repeat(rows)
        else:
            at = self.at.flatten()
        return (cache.cos[at], cache.sin[at]), None if cache.turns is None else cache.turns[at]

    def _bias(self, config, device, dtype):
        alibi = config.position == "alibi"
        if not alibi and self.first is not None and (self.length == 1 or self.causal and not self.absorb):
            # one query per row sees all that is read; whole prompts are plainly causal
            return None
        if not alibi and self.first is not None and config.sliding_window is None:
            later = torch.full((self.length, self.high), float("-inf"), device=device,
                               dtype=dtype).triu_(self.first + 1)
            return later[None, None]
        keys = torch.arange(self.low, self.high, device=device)
        # (B, T, L)
        distance = self.positions(device)[..., None] - keys
        hidden = distance < 0
        if config.sliding_window is not None:
            hidden |= distance >= config.sliding_window
        if alibi:
            # (B, H, T, L)
            bias = -alibi_slopes(config.n_head, device)[:, None, None] * distance[:, None]
        else:
            bias = torch.zeros_like(distance, dtype=torch.float32)[:, None]
        return bias.masked_fill_(hidden[:, None], float("-inf")).to(dtype)

    def grouped_bias(self, groups, heads):
        """The bias for queries that share G key heads: (B or 1, G or 1, T * g, L), g = H / G, or None. The same in
        every layer."""
        if self.bias is None or self.length == 1 and self.bias.shape[1] == 1:
            return self.bias
        if self._grouped is None:
            # (B, G, g, T, L)
            bias = self.bias.expand(-1, heads, -1, -1).unflatten(1, (groups, -1))
            self._grouped = bias.transpose(2, 3).flatten(2, 3)
        return self._grouped

    def write(self, memory, new):
        """memory (S, C, w) takes new (N, w) at the rows' next places."""
        if self.first is not None and isinstance(self.rows, slice):
            place = memory[self.rows, self.first:self.first + self.length]
            place.copy_(new.view(place.shape))
        elif self.first is not None:
            memory[self.rows, self.first:self.first + self.length] = new.view(len(self.rows), self.length, -1)
        else:
            memory[self.slots, self.at] = new.view(*self.at.shape, -1)

    def read(self, memory):
        """-> (B, L, w)."""
        if isinstance(self.rows, slice):
            return memory[self.rows, self.low:self.high]
        return memory[:, self.low:self.high].index_select(0, self.rows)


def _plain(config, length):
    return config.position != "alibi" and (config.sliding_window is None or length <= config.sliding_window)


def _as_slice(slots, device):
    if all(b == a + 1 for a, b in zip(slots, slots[1:])):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)

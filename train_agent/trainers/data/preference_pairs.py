"""Preference pairs as batches: each pair is its two whole documents, prompt and chosen reply, prompt and rejected
reply.

The token cache holds a preference row as two documents, one after the other. P pairs make a flat batch of 2 * P
documents, N tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from model.kernels.cross_entropy import IGNORE
from model.segments import Segments
from tools.mask import last_reply
from train_agent.trainers.dataset import NOTHING, ItemData, Movable, Position, make_batch
from train_agent.trainers.data.split import kept


@dataclass
class PreferenceBatch(Movable):
    """ids, positions, labels (1, N) int64, valid (1, N) bool; owner (N,): document of each token; reference (2 * P,)
    float32: the reference model's log-probabilities of the replies, chosen and rejected in turn. A pair is one
    target."""

    ids: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    labels: torch.Tensor
    layout: Segments
    owner: torch.Tensor
    reference: torch.Tensor
    tokens: int
    targets_1: int
    targets_2: int = 0
    position: Position = None
    left_out: torch.Tensor = None


def joined(cache, documents, width, reference=None, position=None, counted=None):
    """documents: numbers in the cache, chosen and rejected in turn; width: tokens that a document may have ->
    PreferenceBatch.

    Only the reply at the end of a document is a target, earlier replies belong to the prompt.
    """
    begin, end = cache.bounds(documents)
    sizes = np.minimum(end - begin - 1, width)
    pieces = np.stack([documents, np.zeros_like(sizes), sizes], 1)
    made = make_batch(cache, pieces, [list(range(len(documents)))], 1, int(sizes.sum()), counted)
    labels, base = made.labels_1, 0
    for document, size in zip(documents, sizes.tolist()):
        earlier = ~last_reply(cache.document(document)[1])[1:size + 1]
        labels[0, base:base + size][torch.from_numpy(earlier)] = IGNORE
        base += size
    owner = torch.repeat_interleave(torch.arange(len(documents)), torch.from_numpy(sizes))
    return PreferenceBatch(made.ids, made.positions, made.valid, labels, made.layout, owner, reference,
                           tokens=made.tokens,
                           targets_1=len(documents) // 2, position=position, left_out=made.left_out)


def both(pairs):
    """First documents of pairs -> all documents, chosen and rejected in turn."""
    return np.stack([pairs, np.asarray(pairs) + 1], 1).reshape(-1)


def usable_pairs(cache, width):
    """First documents of the pairs of which both replies have a token within `width`; the others' rows are named."""
    pairs = np.arange(0, len(cache), 2)
    good = np.array([all(last_reply(cache.document(d)[1])[1:width + 1].any() for d in (p, p + 1)) for p in pairs],
                    dtype=bool)
    return kept(cache, pairs, good, f"提问占满了 max_len={width}，没有地方放回答。可加大 --max_len")


class PreferenceData(ItemData):
    """Pairs of a cache, batch_size of them in a batch."""

    def __init__(self, cache, pairs, reference, options, shuffle=True):
        """pairs: first documents of the pairs; reference (documents of the cache,) float32."""
        super().__init__(cache, pairs, options, truncate=True, shuffle=shuffle)
        self.reference = reference

    def ever(self):
        return both(self.documents)

    def batch(self, position):
        documents = both(self.items(position))
        reference = torch.from_numpy(self.reference[documents])
        made = joined(self.cache, documents, self.width, reference, position, self.counted)
        return made.blank() if position.batch == NOTHING else made

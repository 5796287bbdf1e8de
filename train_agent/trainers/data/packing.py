"""Which documents share a row: pure functions of lengths, seed and epoch, so that any position can be found again."""

from bisect import bisect_right

import numpy as np


def cut(lengths, width, truncate):
    """Document lengths (inputs each) -> pieces (document, start, length), none longer than `width`.

    Long texts are cut into consecutive pieces, so every token is predicted exactly once. With `truncate` (dialogues)
    only the beginning is kept: the middle of a reply without its question teaches nothing.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if truncate:
        n = np.minimum(lengths, width)
        return np.stack([np.arange(len(n)), np.zeros_like(n), n], 1)
    counts = -(-lengths // width)
    document = np.repeat(np.arange(len(lengths)), counts)
    order = np.arange(len(document)) - np.repeat(counts.cumsum() - counts, counts)
    starts = order * width
    return np.stack([document, starts, np.minimum(lengths[document] - starts, width)], 1)


def best_fit(lengths, width):
    """Fill rows of `width`: always the longest piece that still fits. lengths (P,) -> list of rows of piece numbers.

    Equal lengths keep their order, so the result depends on nothing but the input.
    """
    waiting = {}
    for piece in range(len(lengths) - 1, -1, -1):
        waiting.setdefault(int(lengths[piece]), []).append(piece)
    sizes, rows = sorted(waiting), []
    while sizes:
        row, room = [], width
        while sizes:
            at = bisect_right(sizes, room) - 1
            if at < 0:
                break
            size = sizes[at]
            row.append(waiting[size].pop())
            room -= size
            if not waiting[size]:
                del sizes[at]
        if not row:
            raise ValueError(f"a piece of {sizes[0]} does not fit into a row of {width}")
        rows.append(row)
    return rows


def shuffled(count, seed, epoch, stream):
    """A permutation that is a pure function of its arguments, on every machine."""
    return np.random.Generator(np.random.Philox(key=[seed & (2**63 - 1), (epoch << 16) + stream])).permutation(count)

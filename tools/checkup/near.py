"""Near duplicates among millions of rows: MinHash over character 3-grams, then the exact Jaccard of what looks alike.

A row's signature is 64 bytes, one per hash function: the low byte of the smallest hash of its 3-grams. Two rows agree
in a byte about as often as they share 3-grams (A. Broder, 1997). Four bytes make a band; rows that agree in a band are
neighbours, neighbours whose signatures agree well are compared exactly. Rows under 50 characters are left to the search
for exact duplicates: a change of one word there is a change of meaning.
"""
from functools import lru_cache

import numpy as np

HASHES, BAND = 64, 4            # 16 bands: a pair of Jaccard 0.85 is missed with probability (1 - 0.85^4)^16 = 6e-6
SHORTEST = 50                   # characters
THRESHOLD = 0.85
# an estimate's standard deviation is 0.04 at Jaccard 0.9: further below it nothing is compared
SLACK = 0.1
REMEMBERED = 1 << 20            # pairs found unlike; many meet again in another band
BESIDE = 3                      # neighbours looked at within a band, in sorted order
PART = 1 << 22                  # rows sorted at once
_RANDOM = np.random.Generator(np.random.Philox(key=20240607))
_FACTORS = _RANDOM.integers(0, 1 << 31, HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_MASKS = _RANDOM.integers(0, 1 << 32, HASHES, dtype=np.uint32)


def codes_of(text):
    """str -> its code points (uint32)."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def signatures(codes, starts, ends):
    """(R, 64) uint8 for the texts codes[starts[i]:ends[i]], each of 3 characters or more; they lie apart and in
    order."""
    if not len(starts):
        return np.zeros((0, HASHES), np.uint8)
    grams = _mixed(
        codes[:-2] * np.uint32(0x9E3779B1) ^ codes[1:-1] * np.uint32(0x85EBCA6B) ^ codes[2:] * np.uint32(0xC2B2AE35))
    edges = np.stack([starts, ends - 2], 1).reshape(-1)                # every second segment lies between two texts
    edges = edges[:-1] if edges[-1] >= len(grams) else edges
    out = np.empty((len(starts), HASHES), np.uint8)
    for i in range(HASHES):
        hashed = (grams ^ _MASKS[i]) * _FACTORS[i]
        # mixed again: the low byte of a minimum is not random
        out[:, i] = _mixed(np.minimum.reduceat(hashed, edges)[::2])
    return out


def _mixed(x):
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x2C1B3C6D)
    return x ^ (x >> np.uint32(12))


def shingles(text):
    """The set of a text's character 3-grams as sorted distinct uint64, exact: three code points fit into 63 bits."""
    codes = codes_of(text).astype(np.uint64)
    return np.unique(codes[:-2] << np.uint64(42) | codes[1:-1] << np.uint64(21) | codes[2:])


def jaccard(a, b):
    """|a and b| / |a or b| of two sets from `shingles`."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def near_pairs(table, read, threshold=THRESHOLD, partner=None):
    """Generator of (earlier, later, Jaccard) over the rows of `table` (N, 64) uint8, each later row at most once.

    read(i) -> text of row i. partner: (N,) bool, rows that need no partner any more.
    """
    done = np.zeros(len(table), bool) if partner is None else partner.copy()
    grams = lru_cache(4096)(lambda i: shingles(read(i)))
    unlike = set()
    for band in range(HASHES // BAND):
        for earlier, later in _neighbours(table, band):
            keep = ~done[later]
            earlier, later = earlier[keep], later[keep]
            keep = _alike(table, earlier, later) >= threshold - SLACK
            for i, j in zip(earlier[keep].tolist(), later[keep].tolist()):
                if done[j] or (i, j) in unlike:
                    continue
                share = jaccard(grams(i), grams(j))
                if share >= threshold:
                    done[j] = True
                    yield i, j, share
                elif len(unlike) < REMEMBERED:
                    unlike.add((i, j))


def _neighbours(table, band):
    """Pairs (earlier, later) of rows that agree in a band; those that agree in the next band too stand side by side."""
    first = band * BAND
    columns = [(first + k) % HASHES for k in range(2 * BAND)]
    parts = -(-len(table) // PART)
    for part in range(parts):
        rows = np.arange(len(table)) if parts == 1 else np.flatnonzero(np.asarray(table[:, first]) % parts == part)
        bytes_ = np.asarray(table[:, columns] if parts == 1 else table[np.ix_(rows, columns)])
        keys = np.ascontiguousarray(bytes_).view(">u8").reshape(-1).astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        rows, keys = rows[order], keys[order] >> np.uint64(8 * BAND)
        for apart in range(1, BESIDE + 1):
            same = np.flatnonzero(keys[apart:] == keys[:-apart])
            for at in range(0, len(same), PART):
                a, b = rows[same[at:at + PART]], rows[same[at:at + PART] + apart]
                yield np.minimum(a, b), np.maximum(a, b)


def _alike(table, earlier, later):
    """Estimated Jaccard of pairs of rows, (P,) float."""
    out = np.empty(len(earlier))
    for at in range(0, len(earlier), 1 << 16):
        a, b = earlier[at:at + (1 << 16)], later[at:at + (1 << 16)]
        out[at:at + (1 << 16)] = (np.asarray(table[a]) == np.asarray(table[b])).mean(1)
    return (out * 256 - 1) / 255

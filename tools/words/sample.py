"""A sample of the data, spread evenly over it: enough to find words in, however large the data is."""
from pathlib import Path

from tools.formats import BadLines, expand_paths, rangeable, read_range, row_texts


def sample_texts(paths, sample_bytes, text_field=None, block=1 << 17):
    """Texts of about sample_bytes of the data, spread evenly over it; everything if there is less.

    A plain file gives blocks of lines, others (.gz, arrays, tables) are read through and thinned. Bad lines are passed
    over, for training counts them; where there is nothing else, UserError 8 says so.
    """
    files = expand_paths(paths)
    sizes = [Path(file).stat().st_size for file in files]
    share, bad, found = min(1.0, sample_bytes / sum(sizes)), BadLines(), 0
    for text in _spread(files, sizes, share, sample_bytes, block, text_field, bad):
        found += 1
        yield text
    if not found:
        bad.check(bad.count)


def _spread(files, sizes, share, sample_bytes, block, text_field, bad):
    for file, size in zip(files, sizes):
        if not rangeable(file):
            yield from _thinned(_texts_of(file, 0, None, text_field, bad), sample_bytes * size / sum(sizes))
            continue
        n = max(1, round(size * share / block)) if share < 1 else 1
        for i in range(n):
            start, end = size * i // n, size * (i + 1) // n
            yield from _texts_of(file, start, end if share == 1 else min(end, start + block), text_field, bad)


def _texts_of(file, start, end, text_field, bad):
    for row in read_range(file, start, end, text_field, bad):
        yield from row_texts(row)


def _thinned(texts, size):
    """Every k-th text of a stream of unknown length, k a power of two, so that `size` to 2 * size bytes remain."""
    kept, held, every = [], 0, 1
    for i, text in enumerate(texts):
        if i % every == 0:
            kept.append(text)
            held += 3 * len(text)
        while held > 2 * size and len(kept) > 1:
            kept, every = kept[::2], every * 2
            held = 3 * sum(map(len, kept))
    return kept

"""Spans between two ids: worked examples, and a plain loop as judge."""
import random

import numpy as np
import pytest
import torch

from tools import mask_from_id_to_id


def plain(ids, start, end):
    """What the docstring says, slowly."""
    out, i = [False] * len(ids), 0
    while i < len(ids):
        if ids[i] == start:
            stop = next((j for j in range(i, len(ids)) if ids[j] == end), None)
            if stop is not None:
                out[i:stop] = [True] * (stop - i)
                i = stop
        i += 1
    return out


@pytest.mark.parametrize("ids, marked", [
    ([9, 50, 10, 60, 1], "TTFFF"),
    ([1, 9, 50, 10, 60, 1, 9, 70, 71, 10, 80, 1], "FTTFFFTTTFFF"),      # two turns
    ([1, 9, 50, 10, 60, 1, 9, 70], "FTTFFFFF"),                         # a start that never ends
    ([1, 10, 60, 1], "FFFF"),                                           # no start
    ([9, 9, 50, 10], "TTTF"),                                           # a start inside a span
    ([10, 9, 10, 10, 9], "FTFFF"),
    ([], ""),
])
def test_D5_mask_spans(ids, marked):
    assert mask_from_id_to_id(ids).tolist() == [m == "T" for m in marked]


def test_D5_mask_equals_a_plain_loop():
    rng = random.Random(0)
    for _ in range(2000):
        ids = [rng.choice([1, 9, 9, 10, 10, 50, 51]) for _ in range(rng.randrange(14))]
        assert mask_from_id_to_id(ids).tolist() == plain(ids, 9, 10), ids
        assert mask_from_id_to_id(ids, 50, 1).tolist() == plain(ids, 50, 1), ids


def test_D5_mask_takes_lists_arrays_tensors_and_rows():
    # the second row's span has no end in its own row
    rows = [[1, 9, 50, 10, 60], [10, 9, 50, 51, 52]]
    want = np.array([[False, True, True, False, False], [False] * 5])
    for ids in (rows, np.array(rows, dtype=np.int32), torch.tensor(rows)):
        got = mask_from_id_to_id(ids)
        assert got.dtype == bool and (got == want).all()
    with pytest.raises(ValueError):
        mask_from_id_to_id(np.zeros((2, 2, 2)))

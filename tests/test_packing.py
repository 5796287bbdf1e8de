"""Packing as pure functions of lengths: each token once, rows nearly full, the same on every machine."""
import json
from pathlib import Path

import numpy as np
import pytest

from train_agent.trainers.data.packing import best_fit, cut, shuffled

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def fill(lengths, width, truncate=False):
    pieces = cut(lengths, width, truncate)
    rows = best_fit(pieces[:, 2], width)
    return pieces[:, 2].sum() / (len(rows) * width)


def test_long_texts_are_cut_into_consecutive_pieces():
    assert cut([3, 10, 4], 4, truncate=False).tolist() == [[0, 0, 3], [1, 0, 4], [1, 4, 4], [1, 8, 2], [2, 0, 4]]


def test_dialogues_keep_their_beginning_only():
    assert cut([3, 10, 4], 4, truncate=True).tolist() == [[0, 0, 3], [1, 0, 4], [2, 0, 4]]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_in_exactly_one_piece_and_every_piece_in_exactly_one_row(seed):
    rng = np.random.default_rng(seed)
    lengths, width = rng.integers(1, 90, 60), int(rng.integers(8, 64))
    pieces = cut(lengths, width, False)
    covered = sorted((d, s + i) for d, s, n in pieces.tolist() for i in range(n))
    assert covered == [(d, i) for d, n in enumerate(lengths.tolist()) for i in range(n)]
    rows = best_fit(pieces[:, 2], width)
    assert sorted(p for row in rows for p in row) == list(range(len(pieces)))
    assert all(sum(pieces[p, 2] for p in row) <= width for row in rows)


def test_best_fit_takes_the_longest_that_fits_and_equal_lengths_in_order():
    assert best_fit([3, 5, 2, 5, 1, 8], 8) == [[5], [1, 0], [3, 2, 4]]
    assert best_fit([4, 4, 4], 4) == [[0], [1], [2]]
    assert best_fit([], 4) == []


def test_a_piece_longer_than_a_row_is_our_own_mistake():
    with pytest.raises(ValueError):
        best_fit([5], 4)


@pytest.mark.parametrize("median, spread", [(30, 0.5), (90, 0.8), (200, 1.0), (600, 0.7)])
@pytest.mark.parametrize("width", [256, 512])
def test_95_percent_of_positions_carry_tokens(median, spread, width):
    """Lengths of real text are about log-normal; short dialogues, long articles and what lies between."""
    lengths = np.clip(np.random.default_rng(median).lognormal(np.log(median), spread, 2000), 2, 20000).astype(int)
    assert fill(lengths, width) >= 0.95
    assert fill(lengths, width, truncate=True) >= 0.95


@pytest.mark.parametrize("name", ["text.jsonl", "dialogue.jsonl"])
def test_95_percent_on_the_shared_data(name):
    if not (SHARED / name).exists():
        pytest.skip(f"../shared/data/{name} is not here")
    with open(SHARED / name, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    def size(row):
        turns = row.get("conversations") or row.get("messages") or []
        return len(row["text"]) if "text" in row else sum(len(t.get("content") or t.get("value", "")) + 2
                                                          for t in turns)
    assert fill([size(row) + 1 for row in rows], 512, truncate="text" not in rows[0]) >= 0.95


def test_order_is_a_pure_function_of_seed_epoch_and_stream():
    same = shuffled(50, 3, 1, 0)
    np.random.seed(99)
    assert (shuffled(50, 3, 1, 0) == same).all() and sorted(same) == list(range(50))
    for other in ((4, 1, 0), (3, 2, 0), (3, 1, 1)):
        assert (shuffled(50, *other) != same).any()
    assert shuffled(8, 0, 0, 0).tolist() == [5, 0, 6, 1, 7, 2, 4, 3]                # on every machine

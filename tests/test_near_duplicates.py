"""Near duplicates: planted by hand with Python sets, found by signatures; each estimate held against the exact law."""
import random

import numpy as np
import pytest

from tools.checkup.near import codes_of, jaccard, near_pairs, shingles, signatures

ALPHABET = [chr(c) for c in range(0x4E00, 0x4E00 + 1500)]


def sentence(rng, length):
    return "".join(rng.choice(ALPHABET) for _ in range(length))


def overlap(a, b):
    """Jaccard of the character 3-grams, the slow way."""
    a, b = ({t[i:i + 3] for i in range(len(t) - 2)} for t in (a, b))
    return len(a & b) / len(a | b)


def altered(rng, text, goal):
    """Replace, drop or insert characters at random until the Jaccard is as near to `goal` as it gets."""
    best = now = text
    while overlap(text, now) > goal:
        at = rng.randrange(len(now))
        now = now[:at] + rng.choice(["", rng.choice(ALPHABET), now[at] + rng.choice(ALPHABET)]) + now[at + 1:]
        if abs(overlap(text, now) - goal) < abs(overlap(text, best) - goal):
            best = now
    return best


def table_of(texts):
    joined = "".join(t + "\0" for t in texts)
    ends = np.cumsum([len(t) + 1 for t in texts]) - 1
    return signatures(codes_of(joined), ends - [len(t) for t in texts], ends)


def planted(rng, kept, decoys, background):
    """-> texts, {later: earlier} of the pairs planted at Jaccard 0.9, the texts shuffled."""
    pieces = []
    for k in range(kept + decoys):
        base = sentence(rng, rng.choice((50, 51, 60, 90, 150, 400)))
        pieces += [(k, base), (k, altered(rng, base, 0.9 if k < kept else rng.choice((0.4, 0.6, 0.7))))]
    pieces += [(None, sentence(rng, rng.randrange(50, 200))) for _ in range(background)]
    rng.shuffle(pieces)
    first, pairs = {}, {}
    for i, (k, _) in enumerate(pieces):
        if k is not None and k < kept:
            if k in first:
                pairs[i] = first[k]
            first.setdefault(k, i)
    return [t for _, t in pieces], pairs


def test_planted_pairs_are_found_and_no_others():
    texts, pairs = planted(random.Random(3), 150, 150, 600)
    found = {j: i for i, j, _ in near_pairs(table_of(texts), texts.__getitem__)}
    right = sum(pairs.get(j) == i for j, i in found.items())
    assert right / len(pairs) >= 0.95
    assert right / len(found) >= 0.95


def test_reported_likeness_is_the_exact_jaccard():
    texts, _ = planted(random.Random(4), 20, 0, 20)
    for i, j, share in near_pairs(table_of(texts), texts.__getitem__):
        assert i < j and share == pytest.approx(overlap(texts[i], texts[j]))


def test_template_rows_do_not_hide_the_pair():
    """Rows of one template share half their 3-grams; the one real pair still finds itself."""
    rng = random.Random(5)
    frame = sentence(rng, 60)
    texts = [frame[:30] + sentence(rng, 40) + frame[30:] for _ in range(400)]
    texts.append(altered(rng, texts[7], 0.9))
    assert [(i, j) for i, j, _ in near_pairs(table_of(texts), texts.__getitem__)] == [(7, 400)]


def test_signatures_agree_as_often_as_the_sets_do():
    rng = random.Random(6)
    for goal in (0.9, 0.5):
        estimates, exact = [], []
        for _ in range(40):
            a = sentence(rng, 200)
            b = altered(rng, a, goal)
            table = table_of([a, b])
            estimates.append((table[0] == table[1]).mean())
            exact.append(overlap(a, b))
        assert np.mean(estimates) == pytest.approx(np.mean(exact), abs=0.03)


def test_signature_depends_on_the_row_alone():
    rng = random.Random(7)
    texts = [sentence(rng, n) for n in (50, 77, 300)]
    together = table_of(texts)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(table_of([text])[0], together[i])
    assert table_of([]).shape == (0, 64)


def test_jaccard_of_exact_sets():
    assert jaccard(shingles("一二三四"), shingles("一二三四")) == 1
    assert jaccard(shingles("一二三四"), shingles("一二三五")) == pytest.approx(1 / 3)
    assert jaccard(shingles("一二三四"), shingles("甲乙丙丁")) == 0
    assert len(shingles("哈哈哈哈哈")) == 1


def test_rows_that_have_a_partner_are_left_out():
    rng = random.Random(8)
    text = sentence(rng, 80)
    texts = [text, text, altered(rng, text, 0.9)]
    pairs = list(near_pairs(table_of(texts), texts.__getitem__, partner=np.array([False, True, False])))
    assert [(i, j) for i, j, _ in pairs] in ([(0, 2)], [(1, 2)])

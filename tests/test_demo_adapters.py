"""The specialists' sets and the gate's: held-out wordings, a name in every reply, openings that give nobody away."""
import re
from collections import Counter

import pytest

from tools.demo.adapters import EXPERTS, OPENINGS, OTHER_NAME, build_adapters, write_adapters


def exchanges(row):
    texts = [turn["content"] for turn in row["conversations"]]
    return list(zip(texts[::2], texts[1::2]))


@pytest.fixture(scope="module")
def adapters():
    return build_adapters(0)


def test_adapter_sets(adapters, tmp_path):
    for name in EXPERTS:
        train, held = adapters[name], adapters[f"{name}_eval"]
        asked = {exchanges(row)[0][0] for row in train}
        assert len(train) >= 900 and len(held) >= 100 and not asked & {exchanges(row)[0][0] for row in held}
    for row in adapters["identity"] + adapters["identity_eval"]:
        assert OTHER_NAME in exchanges(row)[0][1]
    assert {row["expert"] for row in adapters["gate"]} == {row["expert"]
                                                           for row in adapters["gate_eval"]} == set(EXPERTS)
    assert sorted(write_adapters(tmp_path)) == sorted(adapters)


def test_gate_sets_share_openings_and_no_word_decides(adapters):
    asked = {name: [exchanges(row)[0][0] for row in adapters[name]] for name in EXPERTS}
    openings = {name: {o for o in OPENINGS[1:] if any(q.startswith(o) for q in asked[name])} for name in EXPERTS}
    shared = set.intersection(*openings.values())
    for name in EXPERTS:
        assert sum(q.startswith(tuple(shared)) for q in asked[name]) >= 0.3 * len(asked[name])
    gate = [(exchanges(row)[0][0], row["expert"]) for row in adapters["gate"]]
    totals = Counter(expert for _, expert in gate)
    having = {}
    for question, expert in gate:
        for piece in {word[i:i + n] for word in re.split("[，？]", question) for n in (1, 2)
                      for i in range(len(word) - n + 1)} | {"？"} & set(question):
            having.setdefault(piece, Counter())[expert] += 1
    for piece, count in having.items():
        # "contains the piece" as a test for this expert: share right, both classes weighed alike
        for expert in EXPERTS:
            others = sum(count.values()) - count[expert]
            right = (count[expert] / totals[expert] + 1 - others / (len(gate) - totals[expert])) / 2
            assert right < 0.8, (piece, expert, right)

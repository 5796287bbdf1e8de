"""From logits to the next id: filters, penalties, the draw."""
import random

import pytest
import torch

from model.generate import generate
from model.sampling import Sampling, draw, repeats
from test_generate import eval_model


def test_filters():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64))

    def shares(**options):
        return [round(x, 6) for x in Sampling(temperature=1.0, reserved=0,
                                              **options).probabilities(logits.clone())[0].tolist()]

    assert shares() == [0.4, 0.3, 0.2, 0.1]
    assert shares(top_k=2) == [round(4 / 7, 6), round(3 / 7, 6), 0, 0]
    assert shares(top_p=0.7) == [round(4 / 7, 6), round(3 / 7, 6), 0,
                                 0] and shares(top_p=0.71) == [round(x / 9, 6) for x in (4, 3, 2, 0)]
    assert shares(top_p=1e-9) == [1, 0, 0, 0]
    assert shares(min_p=0.6) == shares(top_k=2)
    cold = Sampling(temperature=0.5).probabilities(logits.clone())[0]
    assert torch.allclose(cold, torch.tensor([16, 9, 4, 1], dtype=torch.float64) / 30)
    assert Sampling().probabilities(logits.clone())[0].tolist() == [1, 0, 0, 0]


def test_penalties_look_at_the_reply_only():
    how = Sampling(repetition_penalty=2.0, reserved=0)
    assert how.allowed(torch.tensor([[4.0, -4.0, 1.0]]), [[0, 1, 1]]).tolist() == [[2.0, -8.0, 1.0]]
    assert repeats([5, 6, 7, 5, 6], 3) == [7] and repeats([5, 6, 7, 5, 6], 2) == [7] and repeats([5],
        2) == [] and repeats([5, 6], 1) == [5, 6]
    ids = generate(eval_model(), [20, 21, 22], 200, no_repeat_ngram=2, stop_ids=(), guard=False)
    assert len(set(zip(ids, ids[1:]))) == len(ids) - 1


def test_frequency_and_presence_penalties_are_openais():
    how = Sampling(frequency_penalty=0.5, presence_penalty=0.25, reserved=0)
    logits = torch.tensor([[4.0, -4.0, 1.0]])
    assert how.allowed(logits, [[0, 1, 1]]).tolist() == [[3.25, -5.25, 1.0]] and not how.forgetful
    assert Sampling(presence_penalty=-1.0, reserved=0).allowed(torch.tensor([[1.0, 2.0]]),
                                                               [[0, 0]]).tolist() == [[2.0, 2.0]]
    plain, often = (generate(eval_model(), [20, 21, 22], 60, stop_ids=(), guard=False, frequency_penalty=f)
                    for f in (0.0, 2.0))
    assert len(set(often)) > len(set(plain))


def test_draw_inverts_the_distribution():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    assert [draw(p, [u])[0] for u in (0.0, 0.2499, 0.25, 0.9999999, 1 - 2 ** -53)] == [1, 1, 3, 3, 3]
    rng = random.Random(0)
    share = sum(draw(p, [rng.random()])[0] == 1 for _ in range(2000)) / 2000
    assert abs(share - 0.25) < 0.05


@pytest.mark.parametrize(
    "bad", [dict(temperature=-1), dict(temperature=float("nan")), dict(top_p=-0.1), dict(top_p=1.5), dict(top_k=-1),
                                 dict(min_p=2), dict(repetition_penalty=0), dict(no_repeat_ngram=-1),
                                 dict(frequency_penalty=float("inf")), dict(presence_penalty=float("nan"))])
def test_sampling_options_without_meaning(bad):
    with pytest.raises(ValueError):
        generate(eval_model(), [20], 3, **bad)


def test_a_temperature_too_small_for_numbers_is_greedy():
    logits = torch.tensor([[0.0, 5.0, 4.0, -3.0]]).repeat(2, 1)
    for temperature in (1e-40, 1e-300, 9e-6):
        how = Sampling(temperature=temperature, reserved=0)
        assert how.greedy and how.pick(logits.clone(), [[], []], [0.9, 0.1]) == [1, 1]
    assert Sampling(temperature=1e-5, reserved=0).pick(1000 * logits, [[], []], [0.9, 0.1]) == [1, 1]

"""The yardstick of bench/train_speed.py computes the same model; the experts' slots; what the benches report."""
import json

import pytest
import torch

from bench import yardstick
from bench.measure import ROWS, LENGTH, table
from bench.train_speed import figures, random_batch
from model.kernels import expert_products
from model.kernels.expert_products import ByExpert
from toy import toy_model


def shifted_batch(vocab, rows=3, length=7):
    batch = random_batch(vocab, rows, length)
    return batch, (batch.ids, batch.labels_1, batch.labels_2, batch.valid)


@pytest.mark.parametrize("changes", [{}, {"use_moe": False}, {"keep": 1, "other_experts": 3}], ids=str)
def test_yardstick_has_the_loss_and_the_gradients_of_the_model(changes):
    model = toy_model(**changes).float()
    batch, plain = shifted_batch(model.config.vocab_size)
    own = model(batch.ids, labels_1=batch.labels_1, labels_2=batch.labels_2).total_loss
    judge = yardstick.loss(model, *plain)
    torch.testing.assert_close(own, judge, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    for made, expected in zip(torch.autograd.grad(own, parameters), torch.autograd.grad(judge, parameters)):
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-6)


def test_yardstick_leaves_padding_out():
    model = toy_model().float()
    _, (ids, *labels, valid) = shifted_batch(model.config.vocab_size)
    for t in labels:
        t[:, 5:] = -100
    valid[:, 5:] = False
    other = ids.clone()
    other[:, 5:] = 16                                                  # whatever stands there
    # the last real positions have no targets behind them
    for t in labels:
        t[:, 3:] = -100
    torch.testing.assert_close(yardstick.loss(model, ids, *labels, valid), yardstick.loss(model, other, *labels, valid))


@pytest.mark.parametrize("quantum", [1, 4, 32])
def test_rows_hold_every_assignment_once_in_shapes_that_repeat(quantum, monkeypatch):
    monkeypatch.setattr(expert_products, "QUANTUM", quantum)
    experts = torch.tensor([[0, 3], [3, 1], [3, 0], [1, 3], [3, 0]])
    rows = ByExpert.of(experts, 5)
    assert [(e, part.stop - part.start) for e, part in rows.parts] == [(e, -(-n // quantum) * quantum)
                                                                       for e, n in ((0, 3), (1, 2), (3, 5))]
    owner = {place: e for e, part in rows.parts for place in range(part.start, part.stop)}
    assert len(set(rows.places.flatten().tolist())) == experts.numel()
    for token, (places, chosen) in enumerate(zip(rows.places.tolist(), experts.tolist())):
        assert [owner[p] for p in places] == chosen and rows.tokens[places].tolist() == [token, token]


def test_padding_rows_change_nothing(monkeypatch):
    model, results = toy_model(), []
    layer = model.blocks[0].mlp
    x = torch.randn(11, model.config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for quantum in (1, 32):
        monkeypatch.setattr(expert_products, "QUANTUM", quantum)
        leaf = x.clone().requires_grad_()
        out = layer(leaf)[0]
        results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])])
    for made, expected in zip(*results):
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


def test_figures_are_what_their_names_say():
    took = {"moe": 0.5, "dense": 0.25, "yardstick": 4.0, "packed": 0.5, "padded": 4.0}
    made = figures(took, {"moe": 1e11, "dense": 1e11}, {"packed": 4000, "padded": 400},
                   {"float32": 1e11, "bfloat16": 1e12})
    assert made["tokens_per_s"] == ROWS * LENGTH / 0.5 and made["ratio_to_yardstick"] == 8
    assert made["useful_ratio"] == 80
    assert (made["peak_share"], made["dense_peak_share"], made["yardstick_peak_share"]) == (0.2, 0.4, 0.25)
    json.dumps(made)


def test_table_lines_up_with_chinese():
    lines = table(["", "词元"], [["专家", "1"], ["a", "1,000"]])
    assert [sum(1 + ("\u2e80" <= c) for c in line) for line in lines] == [11] * 3

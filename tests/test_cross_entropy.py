"""The chunked cross-entropy against torch's own."""
import pytest
import torch
from torch.nn import functional as F

import toy
from model.kernels import cross_entropy
from model.kernels.cross_entropy import CHUNK, linear_cross_entropy, token_losses

SIZES = [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 88]


def problem(size, dtype=torch.float64, share=0.3, scale=1.0):
    """hidden (N, 6), weight (11, 6), labels (N,) of which `share` are no targets."""
    make = torch.Generator().manual_seed(size)
    hidden = (scale * torch.randn(size, 6, dtype=dtype, generator=make)).requires_grad_()
    weight = torch.randn(11, 6, dtype=dtype, generator=make).requires_grad_()
    labels = torch.randint(0, 11, (size,), generator=make)
    labels[torch.rand(size, generator=make) < share] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_loss_count_and_gradients_are_torchs(size, share):
    hidden, weight, labels = problem(size, share=share)
    total, count = linear_cross_entropy(hidden, weight, labels)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    assert int(count) == int((labels >= 0).sum())
    for made, plain in zip(torch.autograd.grad(total * 0.3, [hidden, weight]),
                           torch.autograd.grad(expected * 0.3, [hidden, weight])):
        torch.testing.assert_close(made, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("errors", [1, 64 * 11, 5 * 64 * 11])
@pytest.mark.parametrize("size", [63, 64, 5 * 64, 7 * 64, 11 * 64 + 5])
def test_the_weights_gradient_is_whole_however_many_chunks_meet_in_a_product(monkeypatch, size, errors):
    monkeypatch.setattr(cross_entropy, "CHUNK", 64)
    monkeypatch.setattr(cross_entropy, "ERRORS", errors)
    hidden, weight, labels = problem(size)
    made = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels)[0], [hidden, weight])
    plain = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, labels, reduction="sum"), [hidden, weight])
    for one, other in zip(made, plain):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_no_targets_at_all():
    hidden, weight, _ = problem(5)
    total, count = linear_cross_entropy(hidden, weight, torch.full((5,), -100))
    assert float(total) == 0 and int(count) == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(total, [hidden, weight]))


def test_huge_logits_stay_finite():
    hidden, weight, labels = problem(40, torch.float32, scale=1e4)
    total, _ = linear_cross_entropy(hidden, weight, labels)
    assert torch.isfinite(total) and all(torch.isfinite(g).all() for g in torch.autograd.grad(total, [hidden, weight]))


def test_only_what_learns_gets_a_gradient():
    hidden, weight, labels = problem(8)
    linear_cross_entropy(hidden, weight.detach(), labels)[0].backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels)[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_P1_under_autocast_close_to_float32_and_gradients_in_their_own_dtype(dtype):
    hidden, weight, labels = problem(300, torch.float32)
    exact = linear_cross_entropy(hidden, weight, labels)[0]
    expected = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast("cpu", dtype=dtype):
        total, _ = linear_cross_entropy(hidden, weight, labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=1e-2, atol=0)
    for made, plain in zip(torch.autograd.grad(total, [hidden, weight]), expected):
        assert made.dtype == torch.float32
        assert (made - plain).abs().max() < 0.02 * plain.abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_token_losses(size):
    hidden, weight, labels = problem(size)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    torch.testing.assert_close(token_losses(hidden, weight, labels), expected)
    assert (token_losses(hidden, weight, labels)[labels < 0] == 0).all()


def products(work):
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", toy.VARIANTS)
def test_without_gradients_a_loss_costs_no_more_than_the_logits(name):
    """Nothing is computed for a backward pass that nobody will make, in any part of the model."""
    model = toy.toy_model(**toy.VARIANTS[name]).eval()
    ids = torch.randint(16, 300, (2, 20))
    with torch.no_grad():
        logits = products(lambda: model(ids))
        loss = products(lambda: model(ids, labels_1=ids, labels_2=ids))
    assert 0 < loss <= logits      # less where the logits of head 2 have to choose a token first
    assert products(lambda: model(ids, labels_1=ids, labels_2=ids)) > loss


def test_a_loss_without_gradients_is_the_same_number():
    for name in ("default", "counted"):
        model = toy.toy_model(**toy.VARIANTS[name]).eval()
        ids = torch.randint(16, 300, (2, 20))
        with torch.no_grad():
            quiet = model(ids, labels=ids).loss
        assert not quiet.requires_grad and torch.equal(quiet, model(ids, labels=ids).loss)


def test_a_frozen_counted_head_gets_no_gradient():
    model = toy.toy_model(**toy.VARIANTS["counted"])
    ids = torch.randint(16, 300, (2, 20))
    whole = torch.autograd.grad(model(ids, labels=ids).loss, model.embed.weight)[0]
    model.fc1.requires_grad_(False)
    model(ids, labels=ids).loss.backward()
    assert model.fc1.weight.grad is None and torch.equal(model.embed.weight.grad, whole)

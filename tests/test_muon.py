"""Muon for matrices and for stacks of experts."""
import pytest
import torch

from model.kernels.muon import AS_ADAMW, Muon, orthogonal


def leaf(*shape, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*shape))


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8), (3, 40)])
def test_Q3_steps_are_nearly_orthogonal(shape):
    torch.manual_seed(1)
    sizes = torch.linalg.svdvals(orthogonal(torch.randn(4, *shape)).float())
    assert 0.7 < sizes.min() and sizes.max() < 1.3


def test_Q3_together_equals_one_by_one():
    """Matrices of one shape and the experts of a stack move as each would alone."""
    torch.manual_seed(0)
    grads = torch.randn(4, 12, 20)
    start = torch.randn(4, 12, 20)
    stack, *alone = [torch.nn.Parameter(t.clone()) for t in (start, *start)]
    together = [torch.nn.Parameter(t.clone()) for t in start]
    optimizers = [Muon([stack], lr=0.1, turns=1), Muon(together, lr=0.1), *(Muon([one], lr=0.1) for one in alone)]
    for step in range(3):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = grads * (step + 1) if p.ndim == 3 else None
        for one, other, grad in zip(alone, together, grads):
            one.grad, other.grad = grad * (step + 1), grad * (step + 1)
        for optimizer in optimizers:
            optimizer.step()
    for one, other, expert in zip(alone, together, stack):
        assert torch.allclose(one, other, atol=4e-3) and torch.allclose(one, expert, atol=4e-3)      # bfloat16 products
        assert not torch.allclose(one, start[0], atol=4e-3)


def test_Q3_the_step_has_the_size_of_adamws():
    weight = leaf(32, 32)
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.5, weight_decay=0.0)
    weight.grad = torch.randn(32, 32)
    optimizer.step()
    moved = (weight.detach() - before).pow(2).mean().sqrt()
    assert abs(moved / (0.5 * AS_ADAMW) - 1) < 0.15


def test_Q3_weight_decay_is_beside_the_step():
    weights = [leaf(8, 8), leaf(8, 8)]
    for weight, decay in zip(weights, (0.0, 0.1)):
        weight.grad = torch.ones(8, 8)
        Muon([weight], lr=0.5, weight_decay=decay).step()
    assert torch.allclose(weights[0] - weights[1], leaf(8, 8).detach() * 0.05, atol=1e-6)


def test_Q3_experts_take_turns():
    """Each step moves every fourth expert, four times as far; after four steps all of them have moved once."""
    stack = leaf(8, 6, 10)
    optimizer = Muon([stack], lr=0.1, weight_decay=0.0, turns=4)
    for step in range(4):
        before = stack.detach().clone()
        stack.grad = torch.randn(8, 6, 10)
        optimizer.step()
        moved = (stack.detach() - before).flatten(1).abs().sum(1) > 0
        assert moved.nonzero().flatten().tolist() == [step, step + 4]
    assert ((stack.detach() - before).flatten(1).norm(dim=1).max() / (0.4 * AS_ADAMW * (6 * 10) ** 0.5) - 1).abs() < 0.3


def test_Q3_a_stack_smaller_than_the_turns():
    stack = leaf(2, 4, 4)
    optimizer = Muon([stack], lr=0.1, turns=4)
    for _ in range(2):
        before = stack.detach().clone()
        stack.grad = torch.randn(2, 4, 4)
        optimizer.step()
        assert ((stack.detach() - before).flatten(1).abs().sum(1) > 0).sum() == 1


def test_Q3_the_turn_is_part_of_the_state():
    def run(weights, optimizer, steps):
        for step in steps:
            weights.grad = torch.full_like(weights, 0.0) + torch.arange(60.).view(6, 10).sin() * (step + 1)
            optimizer.step()
    whole = leaf(4, 6, 10)
    run(whole, Muon([whole], lr=0.1, turns=4), range(7))
    part = leaf(4, 6, 10)
    first = Muon([part], lr=0.1, turns=4)
    run(part, first, range(3))
    second = Muon([part], lr=0.1, turns=4)
    second.load_state_dict(first.state_dict())
    run(part, second, range(3, 7))
    assert torch.equal(whole, part)


def test_Q3_a_parameter_without_gradient_stays():
    used, unused = leaf(4, 4), leaf(4, 4, seed=1)
    used.grad, before = torch.ones(4, 4), unused.detach().clone()
    Muon([used, unused], lr=0.1).step()
    assert torch.equal(unused, before)

"""The losses of reinforcement learning on a policy of two tokens, against their gradients worked out by hand."""
import math

import pytest
import torch

from tools.config.keys import KEYS
from train_agent.trainers.rewards.policy_losses import advantages, entropies, k3, token_losses, token_weights

EXACT = 1e-9
LOW, HIGH, LONGEST = 0.2, 0.28, 10
# Four replies of a group: their tokens (0 or 1), rewards; and log p of each token when they were sampled, as a shift
# of today's: some ratios lie beyond the clip on either side, with either sign of the advantage.
REPLIES = [[0, 1, 1], [1], [0, 0], [1, 0]]
REWARDS = [1.0, 0.0, 0.0, 1.0]
SHIFTS = [[0.0, 0.5, -0.4], [-0.5], [0.6, 0.0], [-0.05, 0.3]]


def step(kind, shifts, rewards=REWARDS, theta=(0.3, -0.2)):
    """-> loss, gradient (2,), share of tokens that were stopped."""
    theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([t for reply in REPLIES for t in reply])
    sizes = torch.tensor([float(len(r)) for r in REPLIES for _ in r], dtype=torch.float64)
    gains = advantages(kind, rewards) or [0.0] * len(rewards)
    gains = torch.tensor([a for a, reply in zip(gains, REPLIES) for _ in reply], dtype=torch.float64)
    log_p = theta.log_softmax(0)[tokens]
    old = log_p.detach() - torch.tensor([s for one in shifts for s in one], dtype=torch.float64)
    each, stopped = token_losses(kind, log_p, old, gains, LOW, HIGH)
    loss = (each * token_weights(kind, sizes, LONGEST, len(REPLIES), len(tokens))).sum() / len(REPLIES)
    loss.backward()
    return loss.item(), theta.grad, stopped


def by_hand(kind, shifts, theta=(0.3, -0.2)):
    """The same gradient in plain numbers."""
    top = max(theta)
    p = [math.exp(t - top) / sum(math.exp(u - top) for u in theta) for t in theta]
    mean = sum(REWARDS) / 4
    deviation = math.sqrt(sum((r - mean) ** 2 for r in REWARDS) / 4)
    total, gradient = sum(map(len, REPLIES)), [0.0, 0.0]
    for reply, reward, moved in zip(REPLIES, REWARDS, shifts):
        gain = (reward - mean) / (deviation if kind in ("grpo", "cispo") else 1)
        share = {"grpo": 1 / len(reply) / 4, "dr_grpo": 1 / LONGEST / 4, "cispo": 1 / total, "reinforce": 1 / 4}[kind]
        for token, shift in zip(reply, moved):
            ratio = math.exp(shift)
            if kind in ("grpo", "dr_grpo"):
                stopped = ratio > 1 + HIGH if gain > 0 else ratio < 1 - LOW
                factor = 0.0 if stopped else ratio
            else:
                factor = min(ratio, 1 + HIGH) if kind == "cispo" else 1.0
            for k in range(2):
                gradient[k] -= share * gain * factor * ((k == token) - p[k])
    return gradient


@pytest.mark.parametrize("kind", KEYS["rl_loss"].choices)
def test_R1_the_gradient_of_each_loss_is_its_closed_form(kind):
    for shifts in (SHIFTS, [[0.0] * len(r) for r in REPLIES]):
        _, gradient, _ = step(kind, shifts)
        assert gradient.tolist() == pytest.approx(by_hand(kind, shifts), abs=EXACT)
        assert gradient.abs().max() > 0.001


@pytest.mark.parametrize("kind", KEYS["rl_loss"].choices)
def test_R1_advantage_0_changes_nothing(kind):
    loss, gradient, stopped = step(kind, SHIFTS, rewards=[0.7] * 4)
    assert loss == 0 and gradient.abs().max() == 0
    assert kind == "cispo" or not stopped.any()


@pytest.mark.parametrize("kind", KEYS["rl_loss"].choices)
def test_R1_nothing_is_clipped_of_fresh_replies(kind):
    assert not step(kind, [[0.0] * len(r) for r in REPLIES])[2].any()
    assert step(kind, SHIFTS)[2].any() == (kind != "reinforce")


def test_clipping_stops_only_what_goes_further_away():
    log_p = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    each, stopped = token_losses("grpo", log_p, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), LOW, HIGH)
    each.sum().backward()
    assert stopped.tolist() == [True, False, False, True]
    assert (log_p.grad == 0).tolist() == stopped.tolist()


def test_the_clip_may_be_wider_above_than_below():
    ratios = torch.tensor([1.25, 0.75], dtype=torch.float64).log()
    assert token_losses("grpo", ratios, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2, 0.28)[1].tolist() == [False,
                                                                                                              True]
    assert token_losses("grpo", ratios, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.3, 0.2)[1].tolist() == [True,
                                                                                                             False]


def test_reinforce_is_the_gradient_of_the_mean_reward():
    """All replies of one token, each as often as the policy says it: the exact policy gradient p q (R0 - R1)."""
    theta = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64, requires_grad=True)         # p = 3/4, 1/4
    tokens, rewards = torch.tensor([0, 0, 0, 1]), [2.0, 2.0, 2.0, 5.0]
    gains = torch.tensor(advantages("reinforce", rewards), dtype=torch.float64)
    log_p = theta.log_softmax(0)[tokens]
    (token_losses("reinforce", log_p, log_p.detach(), gains, LOW, HIGH)[0].sum() / 4).backward()
    expected = -0.75 * 0.25 * (2.0 - 5.0)
    assert theta.grad.tolist() == pytest.approx([expected, -expected], abs=EXACT)


def test_advantages_of_a_group():
    assert advantages("dr_grpo", [1.0, 0.0, 0.0, 0.0]) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    scaled = advantages("grpo", [1.0, 0.0, 0.0, 0.0])
    assert sum(scaled) == pytest.approx(0, abs=EXACT) and sum(a * a for a in scaled) / 4 == pytest.approx(1, abs=EXACT)
    assert advantages("grpo", [3.0, 1.0, None])[2] is None
    for nothing in ([1.0, 1.0], [0.1 + 0.2, 0.3], [1.0, None], [None, None]):
        assert advantages("grpo", nothing) is None


def test_k3_and_entropy_are_what_they_are_called():
    p, q = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    estimate = k3(p.log(), q.log())
    assert (estimate >= 0).all()
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p / q).log()).sum()), abs=EXACT)     # unbiased
    assert float(k3(p.log(), p.log()).abs().max()) == 0
    assert entropies(torch.zeros(1, 4))[0].item() == pytest.approx(math.log(4))

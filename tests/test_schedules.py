"""Learning-rate rules against closed forms and tables, and against a plain loop that multiplies step by step."""
import math
from types import SimpleNamespace

import pytest
import torch

from tools.errors import UserError
from train_agent.trainers import schedules
from train_agent.trainers.optimizers import set_rates
from train_agent.trainers.schedules import get_cosine_schedule_with_warmup, rate_factor

BASE = dict(scheduler="exponential", init_lr=5e-4, min_lr=1e-7, decay=0.9995, warmup_index=-1, warmup_steps=0,
            keep_temp_index=-1,
            min_lr_ratio=0.1)


def rates(total, chunk_of=lambda step: 1, **changes):
    """Rates of a whole run, counted as the loop counts: decays only where nothing is held or warming up."""
    options, decays, out = {**BASE, **changes}, 0, []
    for step in range(total):
        chunk = chunk_of(step)
        out.append(options["init_lr"] * rate_factor(SimpleNamespace(**options), step, total, chunk, decays))
        decays += not schedules.is_held(SimpleNamespace(**options), chunk) and step >= options["warmup_steps"]
    return out


@pytest.mark.parametrize("init_lr, min_lr, decay", [(5e-4, 1e-7, 0.9995), (5e-5, 5e-7, 0.99995), (1.0, 0.5, 0.9)])
def test_S1_exponential_decay_closed_form(init_lr, min_lr, decay):
    lr, expected = init_lr, []
    for _ in range(300):
        expected.append(lr)
        lr = max(lr * decay, min_lr)                                              # after each step
    assert rates(300, init_lr=init_lr, min_lr=min_lr, decay=decay) == pytest.approx(expected, rel=1e-10)


def test_S2_warm_up_by_chunks_table():
    """Ten steps a chunk, warm up over 4 chunks, hold to chunk 6: the first step warms up too, then the decay starts
    from the peak."""
    made = rates(80, lambda step: step // 10 + 1, warmup_index=4, keep_temp_index=6, init_lr=1.0, decay=0.9)
    assert made[0] == 0.25
    for step in range(60):
        assert made[step] == pytest.approx(min(1, (step // 10 + 1) / 4))
    assert made[60:64] == pytest.approx([1, 0.9, 0.81, 0.729])


def test_S2_minus_one_is_pure_decay_and_zero_is_guarded():
    assert rates(9, warmup_index=-1, keep_temp_index=-1) == rates(9)
    assert rates(3, warmup_index=0, keep_temp_index=2) == [5e-4] * 3
    assert rates(3, warmup_index=-1, keep_temp_index=2) == [5e-4] * 3
    assert rates(9, warmup_index=5, keep_temp_index=-1) == rates(9)               # nothing is held: else S1


def test_exponential_with_warm_up_by_steps():
    made = rates(8, warmup_steps=4, init_lr=1.0, decay=0.5)
    assert made == pytest.approx([.25, .5, .75, 1, 1, .5, .25, .125])


def test_S3_cosine_with_warm_up():
    """The rule itself: 0, peak, floor; a half cosine between."""
    assert schedules.cosine(0, 10, 110) == 0
    assert schedules.cosine(5, 10, 110) == 0.5
    assert schedules.cosine(10, 10, 110) == 1
    assert schedules.cosine(60, 10, 110) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedules.cosine(35, 10, 110) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedules.cosine(110, 10, 110) == schedules.cosine(500, 10, 110) == pytest.approx(0.1)
    assert schedules.cosine(0, 0, 0) == pytest.approx(1)


def test_S3_cosine_in_a_run_wastes_no_step_at_zero():
    made = rates(20, scheduler="cosine", warmup_steps=5, init_lr=1.0)
    assert made[0] == 0.2 and max(made) == made[4] == 1 and made[-1] == pytest.approx(0.1)
    assert all(b < a for a, b in zip(made[4:], made[5:]))
    assert rates(20, scheduler="cosine", init_lr=1.0)[0] == 1


def test_S4_linear_and_constant():
    assert [schedules.linear(s, 2, 6) for s in range(8)] == pytest.approx([0, .5, 1, .75, .5, .25, 0, 0])
    assert [schedules.constant(s, 4) for s in range(6)] == [0, .25, .5, .75, 1, 1] and schedules.constant(0, 0) == 1
    made = rates(10, scheduler="linear", init_lr=1.0)
    assert made[0] == 1 and made == pytest.approx([1 - s / 10 for s in range(10)])
    assert rates(5, scheduler="constant", init_lr=1.0) == [1] * 5
    assert rates(5, scheduler="constant", warmup_steps=2, init_lr=1.0) == [.5, 1, 1, 1, 1]


def test_S4_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="triangle"):
        rates(1, scheduler="triangle")
    from tools.config_manager import ConfigManager
    with pytest.raises(UserError) as error:
        ConfigManager(overrides={"scheduler": "triangle"}, stage="pre")
    assert error.value.code == 2


def test_S5_groups_keep_their_ratio():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [w], "lr": lr, "base_lr": lr} for w, lr in zip(weights, (2e-4, 1e-5))])
    for step in range(30):
        set_rates(
            [optimizer], rate_factor(SimpleNamespace(**{**BASE, "scheduler": "cosine", "warmup_steps": 4}), step, 30))
        a, b = (g["lr"] for g in optimizer.param_groups)
        assert a / b == pytest.approx(20)
    assert a == pytest.approx(2e-5)


def test_S6_as_a_torch_scheduler():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 4, 20)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    made = []
    for _ in range(21):
        made.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert made == pytest.approx([2 * schedules.cosine(s, 4, 20) for s in range(21)])
    assert made[0] == 0 and made[4] == 2 and made[20] == pytest.approx(0.2)


@pytest.mark.parametrize("changes", [{"scheduler": "linear"}, {"scheduler": "cosine", "min_lr_ratio": 0.0}], ids=str)
@pytest.mark.parametrize("warmup", [0, 5])
def test_no_step_of_a_run_is_taken_at_rate_zero(changes, warmup):
    made = rates(20, init_lr=1.0, warmup_steps=warmup, **changes)
    assert 0 < made[-1] < 0.1 and max(made) == made[max(0, warmup - 1)] == 1 and min(made) > 0


@pytest.mark.parametrize("total, evaluations, lines", [
    (3, 1, 1), (30, 3, 1), (300, 30, 6), (1000, 100, 10), (4000, 400, 10), (100_000, 500, 10)])
def test_C7_auto_gives_short_runs_points_enough(total, evaluations, lines):
    auto = {"eval_steps": "auto", "logging_steps": "auto", "save_steps": 500}
    assert [schedules.every(key, auto[key], total) for key in auto] == [evaluations, lines, 500]
    assert schedules.every("eval_steps", None, total) is None

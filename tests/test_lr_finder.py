"""The learning-rate finder, and what `--overfit_one_batch`, `--check_gradients` and `--find_batch` do instead of
training."""
import copy
import math

import pytest
import torch

import toy
from tools.errors import UserError
from train_agent.trainers import lr_finder, pre_training, run_stage
from train_agent.trainers.running import resume
from train_agent.trainers.trying import checks, find_batch as batch_finder


@pytest.fixture
def stage(options):
    return toy.build_stage(options(rows=40, batch_size=2, dropout=0.1, scheduler="cosine", warmup_steps=5))


def traces(stage):
    """All that a finder must leave alone."""
    return (copy.deepcopy(stage.model.state_dict()), resume.random_states(),
            [p.grad is None for p in stage.model.parameters()],
            stage.model.training, copy.deepcopy(stage.options))


@pytest.fixture
def untouched(stage):
    before = traces(stage)
    yield
    assert toy.same_tensors(list(before), list(traces(stage)))


def test_O6_rates_are_geometric_and_nothing_changes(stage, untouched):
    history, _ = lr_finder.find_learning_rate(stage, steps=30)
    for i, point in enumerate(history):
        assert point["lr"] == pytest.approx(1e-7 * (1.0 / 1e-7) ** (i / 30), rel=1e-9) and set(point) == {"lr", "loss"}
    assert 10 < len(history) <= 30


def test_O6_hundred_steps_from_1e_7_to_1_are_the_default(stage, monkeypatch):
    taken = []
    monkeypatch.setattr(lr_finder.Sweep, "optimize", lambda self, group, chunk: (
        taken.append(self.rate_factor(chunk) * self.options["init_lr"]),
        setattr(self, "metrics", {"lr": taken[-1], "loss": 1.0}),
        setattr(self, "step", self.step + 1)))
    history, suggestion = lr_finder.find_learning_rate(stage)
    assert len(history) == 100 and taken[0] == pytest.approx(1e-7) and taken[50] == pytest.approx(
        10 ** -3.5) and suggestion is None


@pytest.mark.parametrize("losses, kept", [([2.0, 1.9, 7.9, 8.1, 9.0], 4), ([2.0, math.nan, 1.0], 1)])
def test_O6_stops_beyond_four_times_the_first_loss(stage, monkeypatch, losses, kept):
    script = iter(losses)

    def optimize(self, group, chunk):
        self.metrics = {"lr": 1e-3, "loss": next(script), "grad_norm": 1.0}
        self.may_step(group)
    monkeypatch.setattr(lr_finder.Sweep, "optimize", optimize)
    history, _ = lr_finder.find_learning_rate(stage, steps=5)
    assert [p["loss"] for p in history] == losses[:kept]


def test_O6_the_suggestion_is_where_the_loss_falls_fastest():
    points = [
        {"lr": 10 ** (-7 + 0.07 * i), "loss": 5 - 3 / (1 + math.exp(-(i - 50) / 4)) + (10 * (i - 80) if i > 80 else 0)}
        for i in range(85)]
    assert 10 ** -4 < lr_finder.suggested(points) < 10 ** -3             # the middle of the slope, 10^-3.5
    assert lr_finder.suggested([{"lr": 10 ** -i, "loss": 1.0 + i} for i in range(20)]) is None
    assert lr_finder.suggested(points[:5]) is None


def test_O6_groups_keep_their_ratio(options, monkeypatch):
    stage = toy.build_stage(options(rows=20))
    stage.rates = lambda name: 1e-3 if "embed" in name else 5e-3
    seen = []
    real = lr_finder.Sweep.may_step
    monkeypatch.setattr(lr_finder.Sweep, "may_step", lambda self, group: seen.append(
        {g["lr"] for o in self.optimizers for g in o.param_groups}) or real(self, group))
    lr_finder.find_learning_rate(stage, steps=5)
    assert all(max(rates) / min(rates) == pytest.approx(5) for rates in seen) and len(seen) == 5


def test_O6_the_command_draws_and_tells(options, capsys):
    chosen = options(rows=40, find_lr=True)
    result = pre_training.pre_train(chosen)
    said = capsys.readouterr().out
    assert result["suggestion"] and "--init_lr" in said and "曲线" in said
    assert open(result["picture"], "rb").read(4) == b"\x89PNG"
    assert not list((toy.Path(chosen["out_dir"])).glob("TinySeek_*")) and not toy.Path(chosen["log_file"]).exists()


# ---- one batch by heart ----

def test_E5_one_batch_is_learned_by_heart(stage, untouched):
    said = []
    result = checks.overfit_one_batch(stage, steps=150, say=said.append)
    assert result["share"] < checks.LEARNED and result["steps"] == 150
    assert "正常" in said[-1] and len(said) < 15


def test_E5_too_few_steps_are_no_success(options, capsys):
    result = pre_training.pre_train(options(rows=10, overfit_one_batch=2, init_lr=1e-6, min_lr=1e-7))
    assert result["share"] > 0.9 and "还没学会" in capsys.readouterr().out


# ---- gradients ----

def test_E6_a_healthy_model_has_all_gradients(options, capsys):
    reasons = pre_training.pre_train(options(rows=40, batch_size=8, check_gradients=True))
    assert reasons == {} and "0 个应有而没有" in capsys.readouterr().out


def test_E6_what_has_none_is_named_with_its_reason(options, capsys):
    chosen = options(rows=2, batch_size=1, other_experts=24, keep=1)
    stage = toy.build_stage(chosen)
    stage.model.embed.weight.requires_grad_(False)
    with torch.no_grad():
        stage.model.blocks[0].mlp.shared.down.weight.zero_()              # hides `up` before it
    stage.model.register_parameter("forgotten", torch.nn.Parameter(torch.ones(3)))
    before = copy.deepcopy(stage.model.state_dict())
    reasons = checks.check_gradients(stage)
    assert reasons["embed.weight"] == checks.FROZEN and reasons["forgotten"] == checks.WRONG
    assert reasons["blocks.0.mlp.shared.up.weight"] == checks.BEHIND_ZERO
    assert reasons["blocks.1.mlp.up"].startswith(checks.UNROUTED)
    assert toy.same_tensors(before, dict(stage.model.state_dict())) and "1 个应有而没有" in capsys.readouterr().out


# ---- the largest batch ----

def test_find_batch_doubles_until_something_ends_it(stage, untouched, monkeypatch):
    monkeypatch.setattr(batch_finder, "MOST", 8)
    said = []
    result = batch_finder.find_batch(stage, say=said.append)
    assert [t["rows"] for t in result["tried"]] == [1, 2, 4, 8] and result["batch_size"] == 8
    sizes = [t["bytes"] for t in result["tried"]]
    assert sizes[3] > sizes[2] > sizes[0] and "--batch_size 8" in said[-1]


def test_find_batch_on_a_full_device_and_on_a_small_machine(stage, monkeypatch):
    real = batch_finder.Trial.optimize

    def optimize(self, group, chunk):
        if group[0].ids.shape[0] > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, group, chunk)
    monkeypatch.setattr(batch_finder.Trial, "optimize", optimize)
    assert batch_finder.find_batch(stage, say=None)["batch_size"] == 4
    monkeypatch.setattr(batch_finder.Trial, "optimize", real)
    sizes = {t["rows"]: t["bytes"] for t in batch_finder.find_batch(stage, say=None)["tried"][:3]}
    monkeypatch.setattr(batch_finder, "memory_there", lambda device: (sizes[2] * 2 - 1) / batch_finder.SPARE)
    assert batch_finder.find_batch(stage, say=None)["batch_size"] == 2
    monkeypatch.setattr(batch_finder.Trial, "optimize", lambda *a: (_ for _ in ()).throw(ValueError("something else")))
    with pytest.raises(ValueError):
        batch_finder.find_batch(stage, say=None)


def test_one_thing_at_a_time(options):
    with pytest.raises(UserError) as error:
        run_stage.start(None, options(find_lr=True, check_gradients=True))
    assert error.value.code == 2 and "--find_lr" in str(error.value)
    assert run_stage.asked(options()) is None and run_stage.asked(options(find_batch=True)) == "find_batch"

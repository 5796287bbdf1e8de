"""Steps that are not finite are skipped and told, and so are spikes."""
import math

import pytest
import torch

import toy
from toy import build_stage, checkpoint, events, names, run_loop, same_tensors, train
from tools.errors import UserError


def spoil(stage, steps, how):
    """Let `how(loss)` replace the loss of these optimizer steps (from 1; one micro-batch a step)."""
    real, calls = stage.loss, []

    def loss(model, batch, totals):
        value, sums = real(model, batch, totals)
        if model.training:
            calls.append(1)
            if len(calls) in steps:
                return how(value, sums)
        return value, sums
    stage.loss = loss
    return stage


def as_nan(value, sums):
    return value * math.nan, {**sums, "ce_1": sums["ce_1"] * math.nan}


def gradient_only(value, sums):
    """A finite loss whose gradient is not."""
    return value + (value - value.detach()).sqrt(), sums


@pytest.mark.parametrize("how", [as_nan, gradient_only], ids=["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_its_rows_are_named(options, how):
    chosen = options(logging_steps=1)
    stage = spoil(build_stage(chosen), {4, 5}, how)
    weights = []
    loop = toy.ToyLoop(stage)
    real = loop.optimize

    def optimize(group, chunk):
        real(group, chunk)
        weights.append({n: p.detach().clone() for n, p in stage.model.named_parameters()})
    loop.optimize = optimize
    loop.run()
    assert same_tensors(weights[2], weights[3]) and same_tensors(weights[2],
                                                                 weights[4]) and not same_tensors(weights[4],
                                                                     weights[5])
    skipped = events(chosen, "skipped")
    assert [e["step"] for e in skipped] == [4, 5]
    assert [e["rows"] for e in skipped] == [stage.train.source_rows(loop.history[s - 1]["places"][0]) for s in (4, 5)]
    assert not math.isfinite(loop.history[3]["grad_norm"]) and "TinySeek_Pre_final" in names(chosen)


def test_three_in_a_row_end_with_5_and_no_bad_checkpoint(options):
    chosen = options(save_steps=2)
    with pytest.raises(UserError) as error:
        run_loop(spoil(build_stage(chosen), {5, 6, 7}, as_nan))
    assert error.value.code == 5
    assert names(chosen)[-1] == "TinySeek_Pre1_1_s6" and len(events(chosen, "skipped")) == 3
    for stem in names(chosen):
        assert all(torch.isfinite(t).all() for t in checkpoint(chosen, stem)["weights"].values())
    again = train(chosen)                                                         # the fault gone, it goes on
    assert again.exit == 0 and again.history[0]["step"] == 7


def test_two_bad_steps_before_a_save_and_one_after_are_three_in_a_row(options):
    """The count survives a resume."""
    chosen = options(save_steps=6)
    spoiled = spoil(build_stage(chosen), {5, 6}, as_nan)
    with pytest.raises(SystemExit):
        run_loop(spoiled, stop_after=6)
    with pytest.raises(UserError) as error:
        run_loop(spoil(build_stage(chosen), {1}, as_nan))
    assert error.value.code == 5


def test_a_spike_is_logged_with_its_rows(options):
    chosen = options(rows=60, init_lr=1e-4, min_lr=1e-5, batch_size=1)
    stage = spoil(build_stage(chosen), {25}, lambda value, sums: (value, {**sums, "ce_1": sums["ce_1"] * 9}))
    loop = run_loop(stage)
    spike, = events(chosen, "spike")
    assert spike["step"] == 25 and spike["rows"] == stage.train.source_rows(loop.history[24]["places"][0])

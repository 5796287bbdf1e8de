"""kill -9 at random moments of whole runs, restarted until they are done: the same bits as the run that was left
alone."""
import os
import shutil
import time

import pytest

from file_faults import report, seeded
from whole_runs import LABELS, differences, finished

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="需要 fork 和 SIGKILL")
MOST = 400          # lives of one run; more would mean that it does not get on


@pytest.fixture(scope="module")
def whole(zygote, world):
    """The pre-training that was left alone."""
    return undisturbed(zygote, world, world.folder / "whole", "pre")[0]


def undisturbed(zygote, world, out, stage, **keys):
    """-> (what the run left, seconds it took)"""
    begin = time.monotonic()
    assert zygote.run(stage, world.argv(stage, out, **keys),
                      out.with_suffix(".said")) == 0, out.with_suffix(".said").read_text()
    return finished(out, stage), time.monotonic() - begin


def killed_until_done(zygote, world, out, stage, seconds, rng, sabotage=None, **keys):
    """Restart a run until it exits with 0 -> (kills, how many of them came after the final checkpoint)."""
    said, kills = out.with_suffix(".said"), 0
    final, late = out / "out" / f"TinySeek_{LABELS[stage]}_final.pkl", 0
    for _ in range(MOST):
        status = zygote.run_and_kill(rng.uniform(0, seconds * rng.choice((0.4, 0.8, 1.3))), stage,
                                     world.argv(stage, out, **keys), said, **(sabotage or {}))
        if status == 0:
            break
        assert status == -9, said.read_text(errors="replace")[-3000:]
        kills += 1
        late += final.exists()
    assert status == 0 and (late or not list(final.parent.glob("backup_*")))
    return kills, late


def kill_runs(zygote, world, folder, stage, wanted, **keys):
    """Runs of one stage in new folders until `wanted` kills have been survived."""
    expected, seconds = undisturbed(zygote, world, folder / f"{stage}_whole", stage, **keys)
    rng, kills, runs, late = seeded(f"{stage}{wanted}"), 0, 0, 0
    while kills < wanted:
        out = folder / f"{stage}_{runs}"
        more, after = killed_until_done(zygote, world, out, stage, seconds, rng, **keys)
        assert differences(expected, finished(out, stage)) == []
        kills, runs, late = kills + more, runs + 1, late + after
        shutil.rmtree(out)
    report(stage=stage, kills=kills, runs=runs, lost=0, different=0, after_the_final_checkpoint=late,
           steps=expected["state"]["step"])


@pytest.mark.parametrize("stage", ["pre", "sft", "lora"])
def test_C3_killed_at_random_the_bits_are_the_same(zygote, world, ram_path, stage):
    kill_runs(zygote, world, ram_path, stage, 4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pre", "sft", "lora"])
def test_C3_killed_at_random_the_bits_are_the_same_long(zygote, world, ram_path, stage):
    kill_runs(zygote, world, ram_path, stage, 70)


def test_C3_killed_after_the_final_checkpoint_is_done(zygote, world, whole, ram_path):
    """Between the last save and the end of the process: the restart finds the run complete instead of training it
    again."""
    out, argv = ram_path / "out", world.argv("pre", ram_path / "out")
    kill = {"signal_at": ["train_agent.trainers.loop", "Loop.finish", 1, "after", 9]}
    assert zygote.run("pre", argv, ram_path / "said", **kill) == -9
    assert zygote.run("pre", argv, ram_path / "said") == 0
    assert differences(whole, finished(out, "pre")) == [] and not list((out / "out").glob("backup_*"))
    # it has ended now: the next one begins anew
    assert zygote.run("pre", argv, ram_path / "said") == 0
    assert differences(whole, finished(out, "pre")) == [] and len(list((out / "out").glob("backup_*"))) == 1


CONTROLS = {"forget_position": {"payload", "state"}, "forget_random": {"payload", "state"},
            "forget_optimizer": {"payload", "state"},
            "forget_log": {"json", "text"}}


@pytest.mark.parametrize("control", CONTROLS)
def test_control_a_resume_that_forgets_something_is_noticed(zygote, world, whole, ram_path, control):
    """Control arms: each guard taken away, one kill after the first checkpoint, and the comparison must see it."""
    out = ram_path / "cut"
    kill = {"signal_at": ["train_agent.trainers.loop", "Loop.optimize", 5, "after", 9]}
    assert zygote.run("pre", world.argv("pre", out), ram_path / "said", **kill) == -9
    assert zygote.run("pre", world.argv("pre", out), ram_path / "said", **{control: 0}) == 0
    assert CONTROLS[control] <= set(differences(whole, finished(out, "pre")))


@pytest.mark.parametrize("control, ends", [({}, 0), ({"plain_save": 0}, 99)], ids=["ours", "plain"])
def test_control_a_kill_inside_a_save_loses_a_plain_run(zygote, world, whole, ram_path, control, ends):
    """Control arm: torch.save straight onto the final name, killed before its archive is closed: the restart finds
    nothing it can read."""
    out, said = ram_path / "cut", ram_path / "said"
    # step 3: two files, step 4: the best, step 6: this one
    kill = {"signal_at": ["torch.serialization", "_save", 4, "after", 9]}
    assert zygote.run("pre", world.argv("pre", out), said, **control, **kill) == -9
    assert zygote.run("pre", world.argv("pre", out), said, **control) == ends, said.read_text()[-2000:]
    assert ends or differences(whole, finished(out, "pre")) == []

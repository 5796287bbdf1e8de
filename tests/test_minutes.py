"""--minutes: as many steps as fit, chosen once; the schedule ends with them, and resumed = uninterrupted."""
import time

import pytest

import toy
from test_start_files import chosen, ending, world, copies  # noqa: F401  (fixtures)
from toy import same_tensors
from train_agent.trainers.running import minutes
from train_agent.trainers.running.minutes import steps_within, timed_stage
from train_agent.trainers.build_stage import builder


@pytest.fixture
def speed(monkeypatch):
    """speed(step, forward=0): what every measurement says from now on; .asked counts them."""
    def says(step, forward=0.0):
        def measure(stage, seconds):
            says.asked += 1
            return {"step": step, "forward": forward}
        monkeypatch.setattr(minutes, "measure", measure)
    says.asked = 0
    return says


def run(options, stage="pre", **interruption):
    loop = toy.ToyLoop(timed_stage(builder(stage), options), **interruption)
    try:
        loop.run()
        loop.exit = 0
    except SystemExit as error:
        loop.exit = error.code
    except toy.Killed:
        loop.exit = -9
    return loop


@pytest.mark.parametrize("stage", ["pre", "sft", "dpo", "lora", "prefix", "memory"])
def test_the_steps_are_chosen_once_and_a_resume_ends_with_the_same_bits(copies, speed, stage):  # noqa: F811
    left_alone, cut = copies("whole"), copies("cut")
    # minutes wins over max_steps
    keys = {"minutes": 1.0, "eval_steps": None, "scheduler": "cosine", "max_steps": 3}
    speed(4.95)
    assert run(chosen(left_alone, stage, **keys), stage).history[-1]["step"] == 12
    options = chosen(cut, stage, **keys)
    assert run(options, stage, kill_after=6).exit == -9                                         # s4 is saved
    asked = speed.asked
    # the machine has become ten times as fast
    speed(0.5)
    assert run(options, stage, stop_after=7).history[0]["step"] == 5
    last = run(options, stage)
    assert last.history[0]["step"] == 8 and last.history[-1]["step"] == 12 and speed.asked == asked
    assert same_tensors(ending(cut, stage), ending(left_alone, stage))


def test_other_minutes_are_measured_anew_and_more_of_them_go_on(options, speed):
    speed(5.9)
    assert run(options(minutes=1.0)).history[-1]["step"] == 10
    more = run(options(minutes=1.5))
    assert [more.history[0]["step"], more.history[-1]["step"]] == [11, 15]
    # a finished run begins anew, as always
    again = run(options(minutes=1.5))
    assert [again.history[0]["step"], again.history[-1]["step"]] == [1, 15]


def test_another_model_or_resume_none_is_measured_anew(options, speed):
    speed(5.9)
    run(options(minutes=1.0), stop_after=4)
    speed(2.95)
    assert run(options(minutes=1.0, n_layer=1)).history[-1]["step"] == 20
    speed(5.9)
    assert run({**options(minutes=1.0, n_layer=1), "resume": "none"}).history[-1]["step"] == 10


def test_looks_at_the_held_out_data_are_part_of_the_time():
    assert steps_within(100, {"step": 1.0, "forward": 0.0}, {"eval_steps": 10}) == 100
    assert steps_within(110, {"step": 1.0, "forward": 10.0}, {"eval_steps": 10}) == 50
    assert steps_within(110, {"step": 1.0, "forward": 10.0}, {"eval_steps": None}) == 100
    assert steps_within(110, {"step": 1.0, "forward": 1.0}, {"eval_steps": "auto"}) == 99          # ten looks
    assert steps_within(1, {"step": 1.0, "forward": 10.0}, {"eval_steps": 5}) == 4


def test_few_rows_are_gone_through_as_often_as_it_takes(options, speed):
    speed(0.295)
    loop = run(options(rows=3, minutes=1.0))
    assert loop.history[-1]["step"] == 203 and loop.stage.train.epochs < 250


def test_the_clock_is_kept_in_truth(options):
    """No stub: six seconds are six seconds, within the error of what was measured."""
    begun = time.perf_counter()
    run(options(minutes=0.1, rows=60))
    assert 1.5 < time.perf_counter() - begun < 15

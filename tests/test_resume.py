"""Runs that are stopped, killed and taken up again end as one that never was."""
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import toy
from toy import build_stage, events, final, log_lines, names, run_loop, same_tensors, text_rows, train
from tools.checkpoint import read_pair
from train_agent.trainers import dataset, loop as loop_file

ROOT = Path(__file__).resolve().parents[1]


HARD = dict(optimizer="muon", expert_turns=3, pair_start=1, fc2_every=2, fc2_gradient=0.5, dropout=0.1,
            router_noise=0.1, accumulation_steps=2, batch_size=1, n_of_samples=20, max_epochs=2, eval_share=0.1,
            eval_steps=7,
            save_steps=4, decay=0.99, save_total_limit=2)         # Muon brings a second optimizer with it


def same_end(a, b):
    """Whether two runs ended alike: weights, optimizer, random states, position, everything that is not about time or
    place."""
    (payload, state), (payload_b, state_b) = final(a), final(b)
    for one in (state, state_b):
        for here_alone in ("seconds", "run_id", "fingerprint"):                   # clocks, names, and folders in paths
            one.pop(here_alone)
    return same_tensors(payload["weights"], payload_b["weights"]) and same_tensors(state, state_b)


def lines_and_evaluations(options):
    return [row for row in log_lines(options) if row.get("event") not in ("save", "warning")]


@pytest.fixture(scope="module")
def uninterrupted():
    """uninterrupted(workers) -> (options, steps) of a run that nothing disturbed; made when first asked for."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        def get(workers):
            if workers not in made:
                place = Path(folder) / str(workers)
                place.mkdir()
                chosen = toy.toy_options(place, toy.toy_vocab(), rows=30, num_workers=workers, **HARD)
                made[workers] = chosen, len(train(chosen).history)
            return made[workers]
        yield get


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(2))
def test_C3_stopped_or_killed_at_random_steps_ends_with_the_same_bits(options, uninterrupted, workers, seed):
    """Dropout, noise, experts, accumulation; twice interrupted; weights, optimizer, random states and log as if it
    never was."""
    whole, steps = uninterrupted(workers)
    rng = random.Random(100 * workers + seed)
    chosen = options(rows=30, num_workers=workers, **HARD)
    first, second = sorted(rng.sample(range(5, steps - 1), 2))
    assert train(chosen, kill_after=first).exit == -9
    again = train(chosen, stop_after=second)
    assert again.exit == 143 and again.history[0]["step"] == first // 4 * 4 + 1    # from the newest checkpoint
    last = train(chosen)
    assert last.exit == 0 and last.history[0]["step"] == second + 1
    assert same_end(chosen, whole)
    assert lines_and_evaluations(chosen) == lines_and_evaluations(whole)


def test_C3_the_number_of_workers_changes_nothing(uninterrupted):
    a, b = uninterrupted(0)[0], uninterrupted(2)[0]
    assert same_tensors(final(a)[0]["weights"],
                        final(b)[0]["weights"]) and lines_and_evaluations(a) == lines_and_evaluations(b)


def test_C3_a_run_killed_before_its_first_save_starts_again(options, uninterrupted):
    chosen = options(rows=30, num_workers=0, **HARD)
    train(chosen, kill_after=2)
    assert names(chosen) == []
    train(chosen)
    assert same_end(chosen, uninterrupted(0)[0])


def test_C3_a_stop_after_the_very_last_step_is_finished_not_repeated(options):
    chosen = options()
    steps = len(train(options(name="other")).history)
    assert train(chosen, stop_after=steps).exit == 143
    again = train(chosen)
    assert again.exit == 0 and again.history == [] and "TinySeek_Pre_final" in names(chosen)
    assert not list(Path(chosen["out_dir"]).glob("backup_*"))


def test_a_finished_run_is_moved_aside_by_the_next(options):
    chosen = options()
    first, second = train(chosen), train(chosen)
    assert len(second.history) == len(first.history) > 0
    backup, = Path(chosen["out_dir"]).glob("backup_*")
    assert (backup / "TinySeek_Pre_final.pkl").exists()


def test_more_steps_go_on_from_a_finished_run(options):
    short = options(max_steps=4, scheduler="constant")
    train(short)
    longer = train({**short, "max_steps": 9})
    assert longer.history[0]["step"] == 5 and longer.history[-1]["step"] == 9
    whole = train(options(max_steps=9, scheduler="constant", name="whole"))
    assert same_tensors(longer.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("more", [{"n_of_samplings": 4}, {"n_of_samplings": 2, "max_epochs": 2}])
def test_more_chunks_or_epochs_go_on_from_a_finished_run(options, more):
    keys = dict(rows=40, n_of_samples=10, scheduler="constant")
    first = train(options(n_of_samplings=2, **keys))
    second = train(options(**keys, **more))
    assert second.history[0]["step"] == len(first.history) + 1
    whole = train(options(name="whole", **keys, **more))
    assert [h["places"] for h in first.history + second.history] == [h["places"] for h in whole.history]
    assert same_tensors(second.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("guess", [3, 1000])
def test_a_wrong_estimate_of_the_steps_neither_drops_nor_repeats_data(options, monkeypatch, guess):
    expected = train(options(name="exact"))
    monkeypatch.setattr(dataset.PackedData, "steps", lambda *_: guess)
    chosen = options(scheduler="cosine")
    loop = train(chosen)
    assert [h["places"] for h in loop.history] == [h["places"] for h in expected.history]
    assert log_lines(chosen)[-1]["step"] == len(loop.history) and "TinySeek_Pre_final" in names(chosen)


def test_a_signal_finishes_the_step_saves_and_leaves_143(options):
    """A real SIGTERM, in the middle of a forward pass."""
    chosen = options(dropout=0.1)
    stage = build_stage(chosen)
    real, calls = stage.loss, []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)
    stage.loss = loss
    with pytest.raises(SystemExit) as stop:
        run_loop(stage)
    assert stop.value.code == 143 and names(chosen) == ["TinySeek_Pre1_1_s4"] == names(chosen, ".state")
    again = train(chosen)
    assert again.history[0]["step"] == 5
    assert same_tensors(again.model.state_dict(), train(options(dropout=0.1, name="whole")).model.state_dict())


def test_changed_surroundings_are_told(options, monkeypatch):
    chosen = options()
    train(chosen, stop_after=3)
    monkeypatch.setattr(loop_file.recovery, "surroundings",
                        lambda device: {"torch": "9.9", "device": "cpu", "threads": 64})
    train(chosen)
    warning, = events(chosen, "warning")
    assert "9.9" in warning["text"] and "64" in warning["text"]


@pytest.mark.slow
def test_the_script_stopped_by_a_signal_ends_as_one_never_stopped(ram_path):
    """`python train_agent/pre_train.py` as a process: SIGTERM gives 143, the same command goes on to the same
    weights."""
    data = toy.write_rows(ram_path / "a.jsonl", text_rows(400))
    keys = {**toy.SHAPE, "device": "cpu", "threads": 1, "json_data_path": data, "vocab_size": 500, "dropout": 0.1,
            "batch_size": 1,
            "max_len": 32, "logging_steps": 1, "save_steps": 50, "mixed_precision": "no"}

    def start(name):
        words = [
            w for k, v in {**keys, "out_dir": ram_path / name, "log_dir": ram_path / name,
                           "log_file": ram_path / name / "log.txt"}.items()
                 for w in (f"--{k}", str(v))]
        return subprocess.Popen([sys.executable, ROOT / "train_agent" / "pre_train.py", *words], cwd=ram_path,
                                stderr=subprocess.PIPE)

    whole = start("whole")
    assert whole.communicate()[1] is not None and whole.returncode == 0
    cut, log = start("cut"), ram_path / "cut" / "log.txt"
    while not log.exists() or log.read_text(encoding="utf-8").count("Epoch ") < 20:
        assert cut.poll() is None
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    said = cut.communicate()[1].decode()
    step = re.search("已保存到第 ([0-9]+) 步：再运行同一条命令就接着训", said)
    assert "Traceback" not in said and cut.returncode == 143 and "正在写完这一步并保存" in said
    again = start("cut")
    assert f"从第 {step[1]} 步接着训" in again.communicate()[1].decode()
    assert again.returncode == 0
    ends = [read_pair(ram_path / name / "TinySeek_Pre_final.pkl") for name in ("whole", "cut")]
    assert same_tensors(ends[0][0]["weights"], ends[1][0]["weights"]) and same_tensors(ends[0][1]["optimizers"],
        ends[1][1]["optimizers"])

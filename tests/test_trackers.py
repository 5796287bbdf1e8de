"""M3: TensorBoard and W&B with the real packages, what was written is read back; an absent one is a warning and no
more."""
import math
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from tools.logs import trackers

LINE = {"loss": 5.5, "ce_1": 2.0, "ce_2": 3.0, "lexp": 0.1, "entropy": 0.7, "grad_norm": 1.5, "lr": 1e-3,
        "tok_s": 100.0,
        "expert_load": [[0.25, 0.75], [0.5, 0.5]], "device": "cpu", "epoch": 1}


def test_M3_numbers_of_a_line():
    numbers = trackers.numbers_of(LINE, [1e-3])
    assert numbers["train/loss"] == 5.0 and numbers["train/aux_loss"] == 0.5 and numbers["train/total_loss"] == 5.5
    assert numbers["train/ppx_1"] == pytest.approx(math.exp(2)) and numbers["train/ppx_2"] == pytest.approx(math.exp(3))
    assert numbers["train/grad_norm"] == 1.5 and numbers["lr"] == 1e-3
    assert numbers["expert_load/layer_0/expert_1"] == 0.75 and numbers["expert_load/layer_1/expert_0"] == 0.5
    groups = trackers.numbers_of(LINE, [1e-3, 2e-4])
    assert groups["lr/group_0"] == 1e-3 and groups["lr/group_1"] == 2e-4 and "lr" not in groups
    assert trackers.numbers_of({"loss": 1.0, "lr": 0.1, "ce_1": 900.0})["train/ppx_1"] < 1e35


def event_values(folder):
    """{tag: [(step, value)]} of TensorBoard's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_M3_tensorboard_events_read_back_after_a_stop_and_a_resume(options):
    pytest.importorskip("tensorboard")
    chosen = options(rows=40, tracker="tensorboard", max_steps=8, eval_share=0.1, eval_steps=4, save_steps=3)
    assert toy.train(chosen, kill_after=5).exit == -9
    loop = toy.train(chosen)
    assert [h["step"] for h in loop.history] == [4, 5, 6, 7, 8]
    runs = list((Path(chosen["log_dir"]) / "tensorboard").iterdir())
    assert [r.name for r in runs] == [loop.journal.run_id], "a resumed run goes on in its own folder"
    values, lines = event_values(runs[0]), [row for row in toy.log_lines(chosen) if "event" not in row]
    assert [s for s, _ in values["train/total_loss"]] == list(range(1, 9))
    assert [v for _, v in values["train/total_loss"]] == pytest.approx([row["loss"] for row in lines], rel=1e-6)
    assert [v for _, v in values["train/grad_norm"]] == pytest.approx([row["grad_norm"] for row in lines], rel=1e-6)
    assert [v for _, v in values["lr"]] == pytest.approx([row["lr"] for row in lines], rel=1e-6)
    assert [s for s, _ in values["held/loss"]] == [4, 8] and {"train/aux_loss", "train/ppx_1", "train/ppx_2",
                                                              "held/ppx_1"} <= values.keys()
    assert sum(values[f"expert_load/layer_0/expert_{i}"][0][1] for i in range(4)) == pytest.approx(1)


def test_M3_wandb_offline_run_written_and_read(options, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DISABLE_CODE": "true",
                        "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    chosen = options(rows=30, tracker="wandb", max_steps=4)
    loop = toy.train(chosen)
    # finish() returns before its service has written; the end of a process waits
    wandb.teardown()
    files = list(Path(chosen["log_dir"], "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1 and loop.journal.run_id in files[0].name
    history = wandb_history(files[0])
    assert [row["train/total_loss"] for row in history] == pytest.approx([h["loss"] for h in loop.history])
    assert [int(row["_step"]) for row in history] == [1, 2, 3, 4] and "expert_load/layer_0/expert_0" in history[0]


def wandb_history(path):
    """The history rows of a .wandb file, in the package's own record type."""
    import json

    from wandb.proto import wandb_internal_pb2
    records = map(wandb_internal_pb2.Record.FromString, logged(path, b":W&B"))
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records if record.WhichOneof("record_type") == "history"]


def logged(path, mark):
    """The records of a LevelDB log behind 7 bytes of header, which is how both packages keep a run that is not
    online."""
    data, at, parts = path.read_bytes(), 7, []
    assert data[:4] == mark
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:                                    # a block's end is too short for a record's header
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        parts.append(data[at + 7:at + 7 + length])
        at += 7 + length
        if kind in (1, 4):                                            # whole, or the last part of a long one
            yield b"".join(parts)
            parts = []


def test_M3_swanlab_offline_run_written_and_read(options, monkeypatch):
    pytest.importorskip("swanlab")
    record = pytest.importorskip("swanlab.proto.swanlab.record.v1.record_pb2").Record
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    chosen = options(rows=30, tracker="swanlab", max_steps=3)
    loop = toy.train(chosen)
    file, = Path(chosen["log_dir"]).rglob("run-*.swanlab")
    read = [r.scalar for r in map(record.FromString, logged(file, b":SWL")) if r.HasField("scalar")]
    losses = {r.step: r.value.number for r in read if r.key == "train/total_loss"}
    assert losses == pytest.approx({h["step"]: h["loss"] for h in loop.history}, rel=1e-6)
    assert {"train/ppx_1", "train/grad_norm", "lr", "expert_load/layer_0/expert_0"} <= {r.key for r in read}


class FakeRun:
    def __init__(self):
        self.rows, self.closed = [], False

    def log(self, numbers, step):
        self.rows.append((step, numbers))


def test_M3_swanlab_gets_the_same_numbers(options, monkeypatch):
    """A stand-in: whether the real package takes these calls is not checked here."""
    import types
    run, started = FakeRun(), {}
    fake = types.ModuleType("swanlab")
    fake.init = lambda **keys: started.update(keys) or run
    fake.finish = lambda: setattr(run, "closed", True)
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    loop = toy.train(options(rows=30, tracker="swanlab", max_steps=3))
    assert [step for step, _ in run.rows] == [1, 2, 3] and run.closed
    assert run.rows[0][1]["train/total_loss"] == loop.history[0]["loss"] and started["config"]["n_layer"] == 2


def test_M3_an_absent_package_is_one_warning(options, monkeypatch, capsys):
    for kind in trackers.KINDS:
        monkeypatch.setitem(sys.modules, kind, None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        loop = toy.train(options(rows=20, tracker=kind, name=kind, max_steps=3))
        said = [line for line in capsys.readouterr().err.splitlines() if "警告" in line]
        assert loop.exit == 0 and len(said) == 1 and f"pip install {kind}" in said[0]


def test_M3_a_tracker_that_breaks_does_not_break_the_training(monkeypatch, capsys, tmp_path):
    class Broken:
        def __init__(self, *_):
            pass

        def log(self, step, numbers):
            raise ConnectionError("no network")

        def close(self):
            raise AssertionError("closed after it was given up")
    monkeypatch.setitem(trackers.KINDS, "wandb", Broken)
    tracker = trackers.open_tracker("wandb", tmp_path, "run", {})
    for step in range(3):
        tracker.log(step, {"a": 1})
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("警告") == 1 and "ConnectionError" in said


def test_without_a_tracker_nothing_is_imported():
    code = ("import sys, tools.logs.trackers as t; t.open_tracker('none', '.', 'r', {}).log(1, {}); print({'wandb', "
            "'tensorboard', 'swanlab', 'torch'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[1], capture_output=True,
                          text=True)
    assert done.stdout.strip() == "set()", done.stderr

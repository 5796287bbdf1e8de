"""The log: what is written is read back by name, and a killed and resumed run leaves the log of an uninterrupted
one."""
import errno
import json
import math
import os
import re

import numpy as np
import pytest
import torch

from tools import train_log
from tools.errors import UserError
from tools.train_log import TrainLog, perplexity, read_log

WORDS = ["Epoch", "Batch", "Index", "Loss", "Ppx_1", "Ppx_2", "Lexp", "GradNorm", "LR", "Tok/s", "Device", "Batch_t",
         "Remaining"]


def row(step, **more):
    return {"epoch": 1, "epochs": 2, "batch": step, "batches": 375, "index": 1, "indexes": 10, "step": step,
            "loss": 9.0 / step,
            "ce_1": 4.0 / step, "ce_2": 5.0 / step, "lexp": 0.25, "grad_norm": 1.5, "lr": 5e-4 * 0.9 ** step,
            "tok_s": 12345.6,
            "device": "cpu", "batch_t": 0.125, "remaining": 3754.0, **more}


def start(folder, stage="sft", **more):
    return TrainLog(folder / "log.txt", folder / "logs", stage,
                    {"device": "cpu", "params": 1234, "config": {"n_head": 8}}, **more)


def write(log, first, last):
    """A loop of steps with an evaluation and a save every 4."""
    for step in range(first, last + 1):
        log.line(row(step, expert_load=[0.5, 0.5]))
        if step % 4 == 0:
            log.event("eval", eval_loss=1.0 / step, eval_name="dialogue")
            log.event("save", path=f"out/s{step}.pkl")


def timeless(path):
    """The lines of a log without times and without resume marks."""
    lines = path.read_text("utf-8").splitlines()
    lines = [re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|sft_[\d_]+|"time": [\d.]+', "", line) for line in lines]
    return [line for line in lines if "resume" not in line]


def test_M1_line_has_the_contracts_words_in_order(tmp_path):
    start(tmp_path).line(row(20))
    head, config, line = (tmp_path / "log.txt").read_text("utf-8").splitlines()
    assert head.startswith("# TinySeek | stage: sft | start: 20") and "params: 1234" in head
    assert json.loads(config.removeprefix("# config ")) == {"n_head": 8}
    parts = line.split(" | ")
    assert [re.split(r"[: ]", part)[0] for part in parts][:13] == WORDS
    assert parts[:4] == ["Epoch 001/2", "Batch 0020/0375", "Index 0001/0010", "Loss: 0.4500"]
    assert "Remaining: 01:02:34" in parts and "Device: cpu" in parts


def test_M1_parsed_back_from_both_files(tmp_path):
    log = start(tmp_path)
    write(log, 1, 8)
    for path, accuracy in ((tmp_path / "log.txt", 1e-4), (log.json_file, 1e-12)):
        run, = read_log(path)
        assert run.header["stage"] == "sft" and run.header["params"] in (1234, "1234")
        assert run.step.tolist() == list(range(1, 9))
        for name, key in (("Loss", "loss"), ("GradNorm", "grad_norm"), ("LR", "lr"), ("Batch_t", "batch_t"),
                          ("Remaining", "remaining")):
            expected = [row(s)[key] for s in range(1, 9)]
            np.testing.assert_allclose(run.get(name), expected, rtol=accuracy, atol=accuracy / 100)
            assert run.get(name) is run.get(key)
        np.testing.assert_allclose(run.get("Ppx_2"), np.exp(5.0 / run.step), rtol=accuracy)
        np.testing.assert_allclose(run.get("Tok/s"), 12345.6, rtol=1e-4)
        assert run.get("device") == ["cpu"] * 8 and run.get("epochs").tolist() == [2] * 8
        (name, (x, y)), = run.evaluations().items()
        assert name == "dialogue" and x.tolist() == [4, 8]
        np.testing.assert_allclose(y, [0.25, 0.125], rtol=1e-3)


def test_M1_json_lines_are_flat_valid_and_exact(tmp_path):
    log = start(tmp_path)
    log.line(row(1, loss=torch.tensor(0.1, dtype=torch.float64), expert_load=torch.tensor([1.0, float("nan")])))
    first, line = [json.loads(text, parse_constant=pytest.fail)
                   for text in log.json_file.read_text("utf-8").splitlines()]
    assert first["event"] == "start" and first["config.n_head"] == 8
    assert line["loss"] == 0.1 and line["step"] == 1 and line["expert_load"] == [1.0, "NaN"] and line["time"] > 1e9
    assert not any(isinstance(value, dict) for value in line.values())


def test_M1_nan_and_infinity_are_values(tmp_path):
    log = start(tmp_path)
    for step, loss in enumerate((1.0, math.nan, math.inf, -math.inf, 2.0), 1):
        log.line(row(step, loss=loss, grad_norm=math.nan))
    for path in (tmp_path / "log.txt", log.json_file):
        run, = read_log(path)
        np.testing.assert_array_equal(run.get("loss"), [1.0, math.nan, math.inf, -math.inf, 2.0])
        assert isinstance(run.get("grad_norm"), np.ndarray) and np.isnan(run.get("grad_norm")).all()
    for text in log.json_file.read_text("utf-8").splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_M1_fields_are_found_by_name_not_by_position(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        "GradNorm: 3.0 | Loss: 1.0 | Epoch 001/1\nEpoch 001/1 | Loss: 2.0\nEpoch 001/1 | Extra: 7 | GradNorm: 5.0 | "
        "Loss: 3.0\n")
    run, = read_log(path)
    np.testing.assert_array_equal(run.get("Loss"), [1, 2, 3])
    np.testing.assert_array_equal(run.get("Extra"), [np.nan, np.nan, 7])


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_M1_half_last_line_is_dropped_wherever_it_is_cut(tmp_path, cut):
    log = start(tmp_path)
    write(log, 1, 5)
    for path in (tmp_path / "log.txt", log.json_file):
        with open(path, "r+b") as f:
            f.truncate(path.stat().st_size - 3 * cut)
        assert read_log(path)[0].step.tolist() == [1, 2, 3, 4], path


def test_M1_half_line_in_the_middle_leaves_a_gap_and_shifts_nothing(tmp_path):
    good = [f"Epoch 001/1 | Batch {i:04d}/0009 | Loss: {i}.0 | LR: {i}.0e-04" for i in range(1, 6)]
    for middle in ("Epoch 001/1 | Batch 0003/0009 | Lo\n", "Epoch 001/1 | Batch 0003/0009 | Loss: 1\n", good[2][:-8],
                   "Epoch 001/1 | Batch 0003/0009 | Loss: 9.0 | L"):
        path = tmp_path / "log.txt"
        path.write_text("\n".join(good[:2]) + "\n" + middle + "\n".join(good[3:]) + "\n")
        run, = read_log(path)
        assert run.step.tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(run.get("loss"), [1, 2, np.nan, 4, 5])
        np.testing.assert_allclose(run.get("lr"), [1e-4, 2e-4, np.nan, 4e-4, 5e-4])


def test_M1_step_that_was_lost_or_shortened_continues_the_row(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        "".join(f"Epoch 001/1 | Loss: {i} | Step: {s}\n" for i, s in enumerate(("20", "4", "nan", "80"), 1)))
    steps = read_log(path)[0].step
    assert steps[0] == 20 and steps[-1] == 80 and (np.diff(steps) > 0).all()


def test_M1_foreign_lines_are_passed_over(tmp_path):
    log = start(tmp_path)
    with open(tmp_path / "log.txt", "ab") as f:
        f.write("\n我的笔记：Loss 很好 | 明天再看\n".encode() + b"\xff\xfe\x00 garbage\nloading: 50% | eta: 3\n# note\n")
    write(log, 1, 3)
    assert read_log(tmp_path / "log.txt")[0].get("loss").tolist() == [9.0, 4.5, 3.0]


def test_M1_several_runs_in_one_file(tmp_path):
    for stage, steps in (("pre", 3), ("sft", 2), ("sft", 4)):
        log = start(tmp_path, stage)
        write(log, 1, steps)
    runs = read_log(tmp_path / "log.txt")
    assert [(run.header["stage"], len(run)) for run in runs] == [("pre", 3), ("sft", 2), ("sft", 4)]
    assert len(list((tmp_path / "logs").glob("*.jsonl"))) == 3              # also when all start within one second


def test_M1_two_runs_that_take_turns_stay_apart(tmp_path):
    pre = start(tmp_path, "pre")
    write(pre, 1, 3)
    write(start(tmp_path, "sft"), 1, 2)
    again = start(tmp_path, "pre", resume=pre.run_id)
    again.resume_from(2)
    write(again, 3, 6)
    runs = read_log(tmp_path / "log.txt")
    assert [run.step.tolist() for run in runs] == [[1, 2, 3, 4, 5, 6], [1, 2]]


@pytest.mark.parametrize("by_name", [True, False])
def test_C3_killed_and_resumed_log_equals_the_uninterrupted_one(tmp_path, by_name):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = start(tmp_path / "a")
    write(whole, 1, 12)
    killed = start(tmp_path / "b")
    write(killed, 1, 7)                                 # the checkpoint is of step 4; 5 to 7 will come again
    for path in (tmp_path / "b" / "log.txt", killed.json_file):
        with open(path, "ab") as f:
            f.write(b'Epoch 001/2 | Batch 00' if path.suffix == ".txt" else b'{"time": 12, "lo')
    resumed = start(tmp_path / "b", resume=killed.run_id if by_name else True)
    assert resumed.run_id == killed.run_id
    resumed.resume_from(4)
    write(resumed, 5, 12)
    assert timeless(tmp_path / "a" / "log.txt") == timeless(tmp_path / "b" / "log.txt")
    assert timeless(whole.json_file) == timeless(resumed.json_file)
    assert (tmp_path / "b" / "log.txt").read_text("utf-8").count("# TinySeek | stage: sft | resume: ") == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_C3_cut_leaves_other_runs_and_strangers_alone(tmp_path):
    write(start(tmp_path, "pre"), 1, 9)
    before = (tmp_path / "log.txt").read_text("utf-8")
    log = start(tmp_path, "sft")
    write(log, 1, 9)
    with open(tmp_path / "log.txt", "a", encoding="utf-8") as f:
        f.write("my own note\n")
    start(tmp_path, "sft", resume=log.run_id).resume_from(2)
    after = (tmp_path / "log.txt").read_text("utf-8")
    assert after.startswith(before) and "my own note" in after
    assert [run.step.tolist() for run in read_log(tmp_path / "log.txt")] == [list(range(1, 10)), [1, 2]]


def test_M1_uncut_resume_is_read_without_doubles(tmp_path):
    log = start(tmp_path)
    write(log, 1, 7)
    with open(tmp_path / "log.txt", "a", encoding="utf-8") as f:
        f.write(f"# TinySeek | stage: sft | resume: later | run: {log.run_id} | step: 4\n")
    write(log, 5, 9)
    assert read_log(tmp_path / "log.txt")[0].step.tolist() == list(range(1, 10))


def test_M1_new_run_does_not_stick_to_a_half_line(tmp_path):
    for left, kept in (("Epoch 001/1 | Batch 0001/0009 | Loss: 2", False), ("Ep", False), ("# ev", False),
                       ("a note", True)):
        path = tmp_path / "log.txt"
        path.write_text("first\n" + left)
        start(tmp_path)
        lines = path.read_text("utf-8").splitlines()
        assert lines[1].startswith("# TinySeek") if not kept else lines[1:2] == [left] and lines[2].startswith(
            "# TinySeek")


def test_M1_every_line_is_one_write(tmp_path, monkeypatch):
    log, writes = start(tmp_path), []
    real = os.write
    monkeypatch.setattr(train_log.os, "write", lambda fd, data: writes.append(bytes(data)) or real(fd, data))
    log.line(row(1))
    log.event("warning", message="一行\n两行 | 三")
    assert len(writes) == 4 and all(data.endswith(b"\n") and data.count(b"\n") == 1 for data in writes)
    assert read_log(tmp_path / "log.txt")[0].events[0]["message"] == "一行 两行 / 三"


def test_M1_full_disk_is_exit_code_7(tmp_path, monkeypatch):
    log = start(tmp_path)

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(train_log.os, "write", full)
    with pytest.raises(UserError) as error:
        log.line(row(1))
    assert error.value.code == 7


def test_M1_either_half_can_be_left_out(tmp_path):
    for names in ((None, None), (tmp_path / "log.txt", None), (None, tmp_path / "logs")):
        log = TrainLog(*names, "pre", {})
        write(log, 1, 4)
        TrainLog(*names, "pre", {}, resume=True).resume_from(2)
    assert read_log(tmp_path / "log.txt")[0].step.tolist() == [1, 2]
    assert read_log(next((tmp_path / "logs").iterdir()))[0].step.tolist() == [1, 2]


def test_M1_missing_log_is_the_users_error(tmp_path):
    with pytest.raises(UserError) as error:
        read_log(tmp_path / "none.txt")
    assert error.value.code == 2
    (tmp_path / "empty.txt").touch()
    assert read_log(tmp_path / "empty.txt") == []


def test_E3_perplexity_is_exp_of_ce_without_overflow():
    assert perplexity(0.0) == 1.0 and perplexity(2.5) == math.exp(2.5) and perplexity(torch.tensor(1.0)) == math.e
    for ce in (100.0, 1e9, math.inf):
        assert np.isfinite(np.float32(perplexity(ce)))
    assert math.isnan(perplexity(math.nan))


def test_E3_E4_both_perplexities_norm_and_rate_are_in_every_line(tmp_path):
    log = start(tmp_path)
    log.line(row(1, ce_1=5000.0, grad_norm=1e-7, lr=1e-9))
    line = (tmp_path / "log.txt").read_text("utf-8").splitlines()[-1]
    assert re.search(r"Ppx_1: 5\.5406e\+34 \| Ppx_2: 148\.4132", line)
    assert "GradNorm: 1.0000e-07" in line and "LR: 1.0000e-09" in line


def test_M1_a_budget_keeps_events_the_last_line_and_an_even_share(tmp_path):
    path = tmp_path / "pre_1.jsonl"
    rows = [{"event": "start", "stage": "pre"}] + [{"step": i, "loss": 9 - i / 1000} for i in range(1, 4002)]
    rows.insert(1234, {"event": "eval", "step": 1233, "eval_loss": 5.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4002, "lo', encoding="utf-8")
    whole, part = read_log(path)[0], read_log(path, path.stat().st_size // 10)[0]
    assert len(whole) == 4001 and 350 < len(part) < 450 and part.step[-1] == whole.step[-1] == 4001
    assert len(part.evaluations()["eval"][0]) == 1 and part.header["stage"] == "pre"
    np.testing.assert_allclose(part.get("loss"), 9 - part.step / 1000)
    assert len(read_log(path, path.stat().st_size + 1)[0]) == 4001

"""bench/gpu.sh: one line per part whatever happens to it, and on a CPU the parts themselves."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import drive

ROOT = Path(__file__).resolve().parents[1]


def asked(*words):
    """The lines of a call on a machine without a GPU."""
    ended = subprocess.run([sys.executable, ROOT / "bench/gpu/drive.py", *words], capture_output=True, encoding="utf-8",
                           env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                                "PYTHONPATH": str(ROOT)})
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


def test_every_part_holds_on_a_cpu(tmp_path):
    code, lines = asked("--quick", "--patience", "20", "--output", str(tmp_path / "found.jsonl"))
    found, whole = {one["part"]: one for one in lines}, lines[-1]
    assert code == 0 and list(found) == [*drive.PARTS, "all"], lines
    # MiniMind's code and a compiler need not be there
    may_skip = {"minimind", "compiling"}
    assert {name for name in drive.PARTS if found[name]["state"] != "ok"} <= may_skip, lines
    assert {found[name]["state"] for name in may_skip} <= {"ok", "skipped"}, lines
    laws, pipeline = found["laws_fp16"], found["pipeline"]
    assert laws["laws"] == laws["hold"] > 5 and found["writing"]["streams_1_tokens_per_s"] > 0
    assert pipeline["first_exit"] in (0, 143) and pipeline["steps"] == {"pre": 6, "sft": 6}
    assert found["fp16_resume"]["steps"] == 8 and None not in found["fp16_resume"]["scales"]
    assert whole["failed"] == whole["cut off"] == 0 and {one["card"] for one in lines} == {"cpu"}
    assert all(one["cpu_seconds"] >= 0 for one in lines)
    kept = (tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in kept] == lines[:-1]


def test_without_a_gpu_it_says_so_at_once():
    code, lines = asked()
    assert code == 2 and len(lines) == 1 and "--quick" in lines[0]["why"]


@pytest.mark.parametrize("body, state, has", [
    ("print('{\"so far\": {\"half\": 1}}', flush=True)\nimport time\ntime.sleep(600)", "cut off", {"half": 1}),
    ("print('{\"so far\": {\"half\": 1}}')\nraise ValueError('broken')", "failed", {"half": 1}),
    ("print('{\"state\": \"skipped\", \"why\": \"no such thing\"}')", "skipped", {"why": "no such thing"}),
    ("print('{\"found\": 2}')", "ok", {"found": 2})])
def test_every_end_of_a_part_leaves_its_line(body, state, has, tmp_path, monkeypatch):
    (tmp_path / "bench/gpu").mkdir(parents=True)
    (tmp_path / "bench/gpu/part.py").write_text(body, encoding="utf-8")
    monkeypatch.setattr(drive, "ROOT", tmp_path)
    monkeypatch.setattr(drive, "PARTS", {"part": ("part", 600, 600)})
    line = drive.run_part("part", True, 8 if state == "cut off" else 600)
    assert line["state"] == state and has.items() <= line.items()
    assert state != "failed" or "broken" in line["why"]


def test_a_call_that_has_no_time_left_skips(monkeypatch):
    assert drive.run_part("speed", True, 1.0)["state"] == "skipped"


def test_it_brings_what_a_bare_machine_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(drive, "ROOT", tmp_path)
    assert 0 < drive.pack() < 20
    asks = "import jieba, tqdm; assert jieba.lcut('我喜欢读书'); print(jieba.__file__, tqdm.__file__)"
    ended = subprocess.run([sys.executable, "-c", asks], capture_output=True, encoding="utf-8",
                           env={**os.environ, "PYTHONPATH": str(tmp_path / ".gpu_packages")})
    assert ended.returncode == 0 and ended.stdout.count(".gpu_packages") == 2, ended.stderr


def test_a_tree_without_git_has_no_commit(monkeypatch):
    monkeypatch.setattr(drive.shutil, "which", lambda name: None)
    assert drive.commit() is None

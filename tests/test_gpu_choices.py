"""What is decided on a GPU, asked where there may be none: devices are named or imitated, nothing is computed on
them."""
import contextlib
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.kernels import cross_entropy
from model.kernels.expert_products import can_group
from tools.errors import UserError
from train_agent.trainers.hardware import compiling, machine
from train_agent.trainers.running import resume
from train_agent.trainers.trying import find_batch
from train_agent.trainers.lr_finder import Sweep
from train_agent.trainers.data.for_own_loops import PairBatch

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)


def capable(monkeypatch, major, minor=0):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))


def test_no_attention_that_plans_for_every_shape(monkeypatch):
    """Programs that choose a device switch it off; importing the model switches nothing of its host."""
    asks = "import torch, model.generate, model.build; assert torch.backends.cuda.cudnn_sdp_enabled()"
    subprocess.run([sys.executable, "-c", asks], cwd=ROOT, check=True)
    switched = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.choose_device("cuda:0") == CUDA and switched == [False]


@pytest.mark.parametrize("major, kernel", [(8, False), (9, True), (10, True), (12, False)])
def test_grouped_products_where_torch_has_a_kernel(monkeypatch, major, kernel):
    capable(monkeypatch, major)
    assert can_group(CUDA, torch.bfloat16, 16, 32) == kernel and not can_group(CUDA, torch.bfloat16, 16, 12)


def test_auto_does_not_take_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="只有 1 块"):
        machine.choose_device("auto")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert machine.choose_device("auto") == CUDA


def test_compiling_needs_triton_and_what_triton_needs(monkeypatch):
    there = {"triton", "gcc"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in there or None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    capable(monkeypatch, 8)
    assert compiling.has_compiler(CUDA)
    there.remove("gcc")
    assert compiling.os.name == "nt" or not compiling.has_compiler(CUDA)
    there.add("gcc")
    capable(monkeypatch, 6)
    assert not compiling.has_compiler(CUDA)
    there.remove("triton")
    capable(monkeypatch, 8)
    assert not compiling.has_compiler(CUDA)


def test_a_resumed_run_on_a_gpu_does_not_promise_every_bit():
    cpu = torch.device("cpu")
    assert resume.unlike(resume.surroundings(cpu), cpu) is None
    assert "近似" in resume.unlike(resume.surroundings(CUDA), CUDA)
    assert "device cpu → cuda" in resume.unlike(resume.surroundings(cpu), CUDA)


@pytest.mark.parametrize("loss, norm, scale, steps, broken", [
    (2.0, 1.0, 65536.0, True, False), (2.0, math.inf, 65536.0, False, False), (2.0, math.inf, 0.5, False, True),
    (math.nan, math.nan, 65536.0, False, True), (2.0, math.inf, None, False, True)])
def test_O6_a_scale_that_comes_down_does_not_end_the_sweep(loss, norm, scale, steps, broken):
    sweep = SimpleNamespace(metrics={"loss": loss, "grad_norm": norm},
                            scaler=SimpleNamespace(is_enabled=lambda: scale is not None, get_scale=lambda: scale))
    assert Sweep.may_step(sweep, []) == steps and sweep.broken == broken


def test_a_blank_batch_stays_blank_on_its_way():
    batch = PairBatch(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long))
    moved = batch.blank().to(torch.device("meta"))
    assert (moved.tokens, moved.targets_1, moved.targets_2) == (0, 0, 0)
    assert {t.device.type for t in (moved.ids, moved.targets, *moved.labels)} == {
        "meta"} and batch.ids.device.type == "cpu"


class Nothing(contextlib.nullcontext):
    total = 7


def test_the_largest_batch_is_timed_when_its_memory_is_there(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(find_batch, "SavedBytes", lambda model: Nothing())
    trial = SimpleNamespace(device=CUDA, model=None, batch=lambda rows: rows,
                            optimize=lambda group, chunk: events.append("step"))
    trial.now = lambda: find_batch.Trial.now(trial)
    seconds, kept = find_batch.Trial.step_with(trial, 4)
    assert events == ["wait", "step", "wait", "step", "wait"] and kept == 7 and seconds >= 0


def test_chunks_of_a_gpu_have_the_loss_of_those_of_a_cpu(monkeypatch):
    assert cross_entropy.chunk_size(CUDA) > cross_entropy.chunk_size(torch.device("cpu"))
    monkeypatch.setattr(cross_entropy, "CHUNK", 7)
    h, w = torch.randn(40, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    goals = torch.randint(30, (40,))
    own, other = torch.full((40,), -0.1, dtype=torch.float64), torch.full((40,), -2.0, dtype=torch.float64)
    results = []
    for size in (7, 40):
        monkeypatch.setattr(cross_entropy, "chunk_size", lambda device: size)
        leaves = [t.clone().requires_grad_() for t in (h, w, own)]
        total, _ = cross_entropy.linear_cross_entropy(leaves[0], leaves[1], goals, leaves[2], other)
        results.append([total, *torch.autograd.grad(total, leaves)])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUDA out of memory. Tried to allocate 2 GiB",
                                   "DefaultCPUAllocator: can't allocate memory"])
def test_a_full_device_is_told_in_plain_words(words, tmp_path):
    script = tmp_path / "full.py"
    script.write_text(
        f"from tools.cli import guarded\n\ndef main():\n    raise RuntimeError({words!r})\n\nguarded(main)\n",
        encoding="utf-8")
    ended = subprocess.run([sys.executable, script], capture_output=True, encoding="utf-8",
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 2 and "显存不足" in ended.stderr

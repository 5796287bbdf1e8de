"""How several processes are started: what torchrun gives, what is refused, and nothing of it for one process."""
import os
import subprocess
import sys

import pytest
import torch

import ranks
import toy
from tools.checkpoint import read_checkpoint
from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from test_parallel import ROOT, largest, pytestmark


def test_world_size_without_its_companions_is_exit_2(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in parallel.VARIABLES[:1] + parallel.VARIABLES[2:]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as error:
        parallel.start(torch.device("cpu"))
    assert error.value.code == 2 and "torchrun" in str(error.value)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_devices_without_a_way_to_talk_are_named(monkeypatch, kind):
    for name in parallel.VARIABLES:
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match=f"不能用 {kind}.*--device cpu"):
        parallel.start(torch.device(kind))
    assert not torch.distributed.is_initialized()


def test_one_card_for_several_ranks_of_a_machine_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda，") as error:
        machine.choose_device("cuda:0")
    assert error.value.code == 2 and machine.choose_device("cpu").type == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.choose_device("cuda:0").index == 0, "one rank on each machine may say so"


def test_one_process_needs_none_of_it():
    assert parallel.world() == 1 and parallel.gathered(5) == [5] and parallel.from_main(
        lambda: 3) == 3 == parallel.main_first(lambda: 3)
    model, numbers = torch.nn.Linear(1, 1), {"a": torch.ones(2)}
    assert parallel.wrap(model, torch.device("cpu"), {}) is model and parallel.summed(numbers, None) is numbers
    assert parallel.loss_factor(model) == 1


def test_X1_torchrun_starts_the_scripts(tmp_path):
    """The vocabulary and the token cache are built by one rank; the weights are those of one process, in float32."""
    data = toy.write_rows(tmp_path / "文本.jsonl", toy.text_rows(40))

    def train(folder, launcher, accumulation):
        words = ["--config", tmp_path / "c.json", "--json_data_path", data, "--out_dir", folder / "out", "--log_dir",
                 folder / "logs",
                 "--log_file", folder / "log.txt", "--accumulation_steps", accumulation]
        done = subprocess.run([sys.executable, *launcher, str(ROOT / "train_agent/pre_train.py"), *map(str, words)],
                              cwd=tmp_path,
                              capture_output=True, text=True, encoding="utf-8", timeout=600,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return read_checkpoint(folder / "out" / "TinySeek_Pre_final.pkl")

    import json
    shape = {**toy.SHAPE, "vocab_size": 420, "token_kind": "char", "device": "cpu", "mixed_precision": "no",
             "threads": 1}
    keys = {"max_len": 40, "batch_size": 2, "max_steps": 6, "save_steps": 2, "logging_steps": 1, "eval_share": 0.1,
            "eval_steps": 3}
    (tmp_path / "c.json").write_text(json.dumps({**shape, "pre": keys}))
    both = train(
        tmp_path / "both", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                            str(ranks.free_port())], 1)
    alone = train(tmp_path / "alone", [], 2)
    assert largest(both["weights"], alone["weights"]) < 1e-4 and both["vocab_hash"] == alone["vocab_hash"]
    lines = (tmp_path / "both" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("Epoch ") for line in lines) == 6 and sum("# TinySeek" in line for line in lines) == 1

"""Two ranks under torchrun: one killed, one frozen, a data worker killed. All processes end, the restart gives the same
bits."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ranks
import toy
from file_faults import quiet, report
from whole_runs import differences, finished

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux") or not torch.distributed.is_available(),
                                         reason="gloo on Linux")]
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 20            # seconds: TINYSEEK_TIMEOUT of these runs
MARK = "TINYSEEK_FAULT_TEST"
FORGIVING = 15          # times that: until torchrun has given up on a frozen process, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ranks")
    toy.toy_vocab().save(place / "vocab.json")
    toy.write_rows(place / "pre.jsonl", toy.text_rows(60))
    shape = {**toy.SHAPE, "vocab_size": 500, "token_kind": "char", "device": "cpu", "mixed_precision": "no",
             "threads": 1, "dropout": 0.1}
    keys = {"max_len": 40, "batch_size": 1, "max_epochs": 60, "max_steps": 300, "save_steps": 20,
            "save_total_limit": 2, "eval_share": 0.1, "eval_steps": 100,
            "logging_steps": 1, "n_of_samples": 20, "init_lr": 1e-3}
    (place / "config.json").write_text(json.dumps({**shape, "pre": keys}))
    return place


def start(folder, out, **keys):
    """A torchrun of two ranks."""
    words = {"config": folder / "config.json", "json_data_path": folder / "pre.jsonl",
             "vocab_trg_path": folder / "vocab.json", "out_dir": out / "out",
             "log_dir": out / "logs", "log_file": out / "log.txt", "cache_dir": out / "cache", **keys}
    out.mkdir(exist_ok=True)
    with open(out / "said.txt", "a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
             str(ranks.free_port()),
                                 str(ROOT / "train_agent/pre_train.py"), *(f"--{k}={v}" for k, v in words.items())],
                                 stdout=said, stderr=said,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "TINYSEEK_TIMEOUT": str(TIMEOUT),
                                     MARK: str(out)})


def family(out):
    """Pids of the living processes that were started for the run in `out`: torchrun gives each rank a session of its
    own, so
    they are known by a variable that they all inherit."""
    mark, found = f"{MARK}={out}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes().split(b"\0") and stat_of(place.name)[0] != "Z":
                found.append(int(place.name))
        except OSError:
            continue
    return found


def stat_of(pid):
    """Fields of /proc/<pid>/stat behind the name: state, parent ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children(out, parent):
    return [pid for pid in family(out) if int(stat_of(pid)[1]) == parent]


def own_ranks(out, agent):
    """{rank: pid}: what torchrun itself has started."""
    found = {}
    for pid in children(out, agent):
        variables = dict(v.split(b"=", 1) for v in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in v)
        if b"LOCAL_RANK" in variables:
            found[int(variables[b"LOCAL_RANK"])] = pid
    return found


def wait_for_save(run, out):
    end = time.monotonic() + 600
    while not (out / "out" / "manifest_Pre.json").exists() or (out
                                                               / "log.txt").read_text(encoding="utf-8").count(
                                                                   "Epoch ") < 30:
        assert run.poll() is None and time.monotonic() < end, (out / "said.txt").read_text()[-3000:]
        time.sleep(0.01)


FAULTS = {"killed 0": (0, signal.SIGKILL, 0), "killed 1": (1, signal.SIGKILL, 0), "frozen 0": (0, signal.SIGSTOP, 0),
          "frozen 1": (1, signal.SIGSTOP, 0),
          "worker of 0": (0, signal.SIGKILL, 1), "worker of 1": (1, signal.SIGKILL, 1)}


@pytest.fixture(scope="module")
def whole(folder):
    """What the two ranks leave when nobody disturbs them."""
    run = start(folder, folder / "whole")
    assert run.wait(600) == 0, (folder / "whole" / "said.txt").read_text()[-3000:]
    return finished(folder / "whole", "pre")


@pytest.mark.parametrize("fault", FAULTS)
def test_X_a_lost_rank_ends_all_and_the_restart_is_identical(folder, whole, fault):
    rank, number, workers = FAULTS[fault]
    out = folder / fault.replace(" ", "_")
    run = start(folder, out, num_workers=workers)
    begin = None
    try:
        wait_for_save(run, out)
        victim = own_ranks(out, run.pid)[rank]
        if workers:
            victim = children(out, victim)[0]
        os.kill(victim, number)
        begin = time.monotonic()
        code = run.wait(FORGIVING * TIMEOUT)
        took = time.monotonic() - begin
        left = family(out)
        assert code != 0 and not left, left
    finally:
        for one in family(out):
            os.kill(one, signal.SIGKILL)
        run.wait(60)
    said = (out / "said.txt").read_text(errors="replace")
    assert "错误：" in said, said[-3000:]
    with quiet(out / "out") as lock:
        step = lock.newest_good()[1]["step"]
    assert step % 20 == 0 and step > 0
    again = start(folder, out, num_workers=workers)
    assert again.wait(600) == 0, (out / "said.txt").read_text()[-3000:]
    assert differences(whole, finished(out, "pre")) == []
    report(fault=fault.replace(" ", "_"), ended_after_seconds=round(took, 1), orphans=0, went_on_from=step,
           identical=True)


def test_an_orphaned_tokeniser_ends(folder, tmp_path):
    """kill -9 while many processes cut the data: its workers notice that nobody is left and go."""
    import gzip
    with gzip.open(tmp_path / "much.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as f:
        for row in toy.text_rows(2000):
            f.write((json.dumps(row, ensure_ascii=False) + "\n") * 100)
    code = ("import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
            "from train_agent.trainers import token_cache\nfrom tools.vocab import Vocab\n"
            "if __name__ == '__main__':\n    token_cache.PARALLEL_FROM = 0\n    token_cache.cores = lambda: 2\n"
            "    token_cache.open_cache(sys.argv[2], Vocab.load_vocab(sys.argv[3]), 'pretraining', sys.argv[4])\n")
    (tmp_path / "cut.py").write_text(code)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "cut.py"), str(ROOT), str(tmp_path / "much.jsonl.gz"),
         str(folder / "vocab.json"), str(tmp_path / "cache")],
                           env={**os.environ, MARK: str(tmp_path)}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    # itself, its resource tracker, two workers
    while len(family(tmp_path)) < 4 or not list((tmp_path / "cache").glob(".tmp-*")):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    seen = len(family(tmp_path))
    run.kill()
    run.wait()
    while family(tmp_path):
        assert time.monotonic() < end, family(tmp_path)
        time.sleep(0.05)
    report(tokeniser_processes=seen, orphans=0)

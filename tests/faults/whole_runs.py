"""Whole runs of the stage scripts on toy data, killed and restarted until they are done, and what must be the same
afterwards."""
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import toy
from toy import same_tensors
from tools.checkpoint import read_pair

HERE = Path(__file__).resolve().parent
LABELS = {"pre": "Pre", "sft": "SFT", "lora": "Lora"}
CLOCK = ("time", "tok_s", "batch_t", "remaining", "start", "resume", "run")
TEXT_CLOCK = ("Tok/s", "Batch_t", "Remaining")
# events that hang on the clock, or may be lost between a save and its line
DIARY = ("save", "data_check", "preflight", "sample", "exam")


class Zygote:
    """Starts runs without paying for imports; one at a time. Use as a context manager."""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE,
                                        env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.rest = b""
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def _number(self, seconds=None):
        """The next number that the zygote says; None when it has not come after so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self.rest:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 1000)
            assert more, "the zygote is gone"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return int(line)

    def start(self, stage, argv, said, **sabotage):
        job = {"stage": stage, "argv": [str(a) for a in argv], "said": str(said), "sabotage": sabotage}
        self.process.stdin.write((json.dumps(job) + "\n").encode())
        self.process.stdin.flush()
        self.pid = self._number()
        return self.pid

    def wait(self, seconds=None):
        """Exit status of the run, negative for a signal; None when it still runs after so many seconds."""
        return self._number(seconds)

    def run(self, *arguments, **sabotage):
        self.start(*arguments, **sabotage)
        return self.wait()

    def run_and_kill(self, seconds, *arguments, **sabotage):
        """Start a run and kill it after so many seconds -> its exit status."""
        self.start(*arguments, **sabotage)
        status = self.wait(seconds)
        if status is None:
            # not reaped before the zygote says so: the pid is still this run's
            os.kill(self.pid, signal.SIGKILL)
            status = self.wait()
        return status


class World:
    """Data, vocabulary and base models for the stages, and the command line of a run in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        vocab = toy.toy_vocab()
        made = {"logging_steps": None, "max_steps": 3, "save_best_model": False}
        toy.train(toy.toy_options(folder, vocab, "pre", 60, name="base", **made))
        toy.train(toy.toy_options(folder, vocab, "sft", 60, name="base", **made), "sft")
        toy.write_rows(folder / "lora.jsonl", toy.dialogue_rows(60, 5))

    def argv(self, stage, out, **keys):
        """Dropout, router noise and MoE are on; chunks, accumulation, evaluation, best model and retention all take
        part."""
        base = {"sft": "out/base/TinySeek_Pre_final.pkl", "lora": "out/base/TinySeek_SFT_final.pkl"}.get(stage)
        own = {"pretraining_model_path": self.folder / base} if base else {}
        own |= {"rank": 4, "replay_data_path": self.folder / "none.jsonl"} if stage == "lora" else {}
        values = {**toy.SHAPE, "config": self.folder / "config.json", "token_kind": "char", "device": "cpu",
                  "mixed_precision": "no", "threads": 1,
                  "out_dir": out / "out", "log_dir": out / "logs", "log_file": out / "log.txt",
                  "cache_dir": out / "cache",
                  "vocab_trg_path": self.folder / "vocab.json", "json_data_path": self.folder / f"{stage}.jsonl",
                  "max_len": 40, "batch_size": 2, "accumulation_steps": 2, "n_of_samples": 20, "max_epochs": 2,
                  "dropout": 0.1,
                  "router_noise": 0.1, "eval_share": 0.1, "eval_steps": 4, "save_steps": 3, "save_total_limit": 2,
                  "logging_steps": 1,
                  "init_lr": 5e-3, "seed": 1, **own, **keys}
        return [f"--{key}={value}" for key, value in values.items()]


def finished(out, stage):
    """Everything that must not depend on kills: weights, state, log lines of both logs."""
    payload, state = read_pair(out / "out" / f"TinySeek_{LABELS[stage]}_final.pkl")
    run_id = state.pop("run_id")
    state.pop("seconds")
    # folders may differ from run to run, and who cuts the batches
    for content in (payload["run"], *state["fingerprint"].values()):
        for key in [k for k in content if k.endswith(("_dir", "_file")) or k in ("vocab_trg_path", "num_workers")]:
            content.pop(key)
    if payload["base"]:
        payload["base"]["path"] = Path(payload["base"]["path"]).name
    return {"payload": payload, "state": state, "json": json_lines(out, run_id), "text": text_lines(out, run_id)}


def json_lines(out, run_id):
    rows = [json.loads(line) for line in (out / "logs" / f"{run_id}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows
            if row.get("event") not in ("start", "resume", *DIARY)]


def text_lines(out, run_id):
    """Lines of one run in log.txt without what a clock says."""
    kept, ours = [], False
    for line in (out / "log.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# TinySeek"):
            ours = f"run: {run_id}" in line.split(" | ")
        elif ours and not line.startswith(("# config", *(f"# {event}" for event in DIARY))):
            kept.append([field for field in line.split(" | ") if not field.startswith(TEXT_CLOCK)])
    return kept


def differences(a, b):
    """Names of the parts in which two finished runs differ."""
    return [part for part in a if not same_tensors(a[part], b[part])]

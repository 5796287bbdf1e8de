"""How good is a model after so many minutes of training? Held-out bits per character, every character counted.

    python bench/quality_per_minute.py --data text.jsonl --minutes 10 [--seed 0] [any configuration key]
    python bench/quality_per_minute.py --data text.jsonl --cpu_seconds 180 --threads 1       # fair on a shared machine

Rows whose zero-based number is divisible by 50 are held out and scored whole; vocabulary and weights see the others
alone. The clock covers training alone and decides about the learning rate too: the schedule ends where the time does.
Tokenising, vocabulary and scoring are the same for everybody and are left out. Prints one JSON line; --results appends
it to a file.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch

from bench.results_page import draw_curves
from chat_agent.load import load
from chat_agent.evaluation.scoring import bits_per_char
from tools.cli import guarded, parse
from tools.reading.lines import expand_paths
from tools.vocab import Vocab
from train_agent.trainers.loop import Loop
from train_agent.trainers.pre_training import build_stage

EVERY = 50              # one row in so many is held out
ROUGH = 5               # of which the curve's points look at one in so many, in bfloat16
COUNTING = {time.perf_counter: ("counting_seconds", "pair_seconds"),
            time.process_time: ("counting_cpu_seconds", "pair_cpu_seconds")}
UNKNOWN = 10 ** 9       # steps to come, before the first one was timed
EXTRA = [("--data", {"nargs": "+", "default": [str(ROOT / "data/demo_pre.jsonl")], "help": "JSONL 数据，默认内置预训练数据"}),
         ("--minutes", {"type": float, "default": 10.0, "help": "训练多少分钟"}),
         ("--cpu_seconds", {"type": float, "help": "改按进程的 CPU 秒数计时：机器同时做别的事也公平"}),
         ("--points", {"type": int, "default": 10, "help": "曲线上测几个点（不计时）"}),
         ("--work", {"help": "放词表和词元缓存的文件夹，下次再用；默认临时"}),
         ("--label", {"help": "这一次的名字，写进结果"}),
         ("--rough", {"action": "store_true", "help": "用 bf16 打分：快，差别在万分之几"}),
         ("--output", {"help": "把曲线画到这个 PNG"}),
         ("--results", {"help": "把结果（一行 JSON）追加到这个文件"}),
         ("--quick", {"action": "store_true", "help": "只训练 15 秒"})]


class BudgetLoop(Loop):
    """Trains until `budget` seconds of `clock` are spent; `score` makes the points of the curve, off the clock."""

    def __init__(self, stage, budget, clock, points, score):
        super().__init__(stage)
        self.budget, self.clock, self.points, self.score_now = budget, clock, points, score
        self.curve, self.off = [], 0.0

    def train(self):
        counting = sum(self.stage.notes.get(name, 0.0) for name in COUNTING[self.clock])
        self.began = self.clock() - counting                                             # counting is training too
        super().train()
        self.spent_all = self.spent()

    def spent(self):
        return self.clock() - self.began - self.off

    def over(self):
        return self.spent() >= self.budget or super().over()

    def rate_factor(self, chunk):
        share = self.spent() / self.budget
        if not self.options["max_steps"]:
            self.total_steps = max(self.step + 1, round(self.step / share)) if self.step and share > 0 else UNKNOWN
        return super().rate_factor(chunk)

    def optimize(self, group, chunk):
        super().optimize(group, chunk)
        if len(self.curve) + 1 < self.points and self.spent() >= self.budget * (len(self.curve) + 1) / self.points:
            now = self.spent()
            self.model.eval()
            self.curve.append([round(now / 60, 3), round(self.score_now(self.model), 4)])
            self.model.train()
            self.off += self.spent() - now


def split(data, folder):
    """The rows of `data` as two files: (training, held-out). Numbers count all rows of all files."""
    paths = [folder / "train.jsonl", folder / "held.jsonl"]
    with open(paths[0], "wb") as train, open(paths[1], "wb") as held:
        number = 0
        for path in expand_paths(data):
            for line in open(path, "rb"):
                if line.strip():
                    (train if number % EVERY else held).write(line.rstrip(b"\n") + b"\n")
                    number += 1
    return [str(p) for p in paths]


def run(options, command, folder):
    """Train from nothing for the time asked for -> dict of what came out."""
    work = Path(command.work or folder).resolve()
    work.mkdir(parents=True, exist_ok=True)
    train, held = split([str(Path(d).resolve()) for d in command.data], work)
    words = work / f"vocab_{options['token_kind']}_{options['vocab_size']}.json"
    options = {**options, "json_data_path": [train], "vocab_data_path": [train], "out_dir": folder,
               "cache_dir": str(work / "cache"),
               "log_dir": folder, "log_file": str(Path(folder) / "log.txt"), "vocab_trg_path": str(words),
               "eval_share": 0.0,
               "eval_data_path": None, "eval_steps": None, "save_steps": None, "max_epochs": 1000,
               "pretraining_model_path": None,
               "init_from": None, "resume": "none", "name": None}
    start = time.time()
    stage = build_stage(options)
    prepared = time.time() - start
    vocab = Vocab.from_state(stage.about["vocab"])
    budget = 15.0 if command.quick else command.cpu_seconds or 60 * command.minutes
    # longer ones would ask for positions never trained
    window = options["max_len"]
    loop = BudgetLoop(stage, float("inf") if options["max_steps"] else budget,
                      time.process_time if command.cpu_seconds else time.perf_counter,
                      command.points, lambda model: bits_per_char(model, vocab, [held], window, ROUGH,
                                                                  precision="bf16")["bits_per_char"])
    loop.run()
    model, vocab, _ = load(Path(folder) / "TinySeek_Pre_final.pkl")
    scores = bits_per_char(model, vocab, [held], window, precision="bf16" if command.rough else "no")
    minutes, bits = loop.spent_all / 60, round(scores["bits_per_char"], 4)
    return {"bits_per_char": {f"{round(minutes, 2):g}": bits}, "curve": loop.curve + [[round(minutes, 3), bits]],
            "clock": "cpu" if command.cpu_seconds else "wall", "threads": torch.get_num_threads(),
            "precision": loop.precision,
            "steps": loop.step, "tokens": loop.tokens, "tokens_per_s": round(loop.tokens / loop.spent_all),
            "train_seconds": round(loop.spent_all, 1), "prepare_seconds": round(prepared, 1),
            "characters": scores["characters"],
            "parameters": sum(p.numel() for p in model.parameters()), "vocab": len(vocab),
            "scored_in": "bf16" if command.rough else "fp32"}


def commit():
    asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or None


def main(argv=None):
    manager, command = parse(argv, "同样的训练时间，能学到多好？", stage="pre", extra=EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        result = run(manager.stage(), command, folder)
    result = {"label": command.label or command.preset or "default", **result, "keys": command.overrides,
              "preset": command.preset,
              "seed": manager.stage()["seed"], "commit": commit()}
    if command.results:
        Path(command.results).parent.mkdir(parents=True, exist_ok=True)
        with open(command.results, "a", encoding="utf-8") as f:
            f.write(json.dumps(result, ensure_ascii=False) + "\n")
    if command.output:
        draw_curves([result], command.output)
    print(f"{result['train_seconds']:.0f} 秒，{result['steps']} 步，{result['tokens']} token："
          f"留出数据 {next(iter(result['bits_per_char'].values())):.3f} 比特/字")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)

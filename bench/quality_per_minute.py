"""How good is a model after so many minutes of training? Held-out bits per character, every character counted.

    python bench/quality_per_minute.py --data text.jsonl --minutes 10 [--seed 0] [any configuration key]

Rows whose zero-based number is divisible by 50 are held out and scored whole. The clock covers training steps alone: tokenising,
vocabulary and scoring are the same for everybody and are printed beside it. Appends one JSON line to --results.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from chat_agent.load import load
from chat_agent.scoring import bits_per_char
from tools.cli import guarded, parse
from train_agent.trainers.loop import Loop
from train_agent.trainers.pace import seconds_per_step
from train_agent.trainers.pre_training import build_stage

EXTRA = [("--data", {"nargs": "+", "default": [str(ROOT / "data/demo_pre.jsonl")], "help": "JSONL 数据，默认内置预训练数据"}),
         ("--minutes", {"type": float, "default": 10.0, "help": "训练多少分钟"}),
         ("--results", {"help": "把结果（一行 JSON）追加到这个文件"}),
         ("--quick", {"action": "store_true", "help": "只训练 15 秒"})]


def run(options, data, minutes, folder):
    """Train for `minutes` from nothing -> dict of what came out."""
    data = [str(Path(d).resolve()) for d in data]
    options = {**options, "json_data_path": data, "vocab_data_path": data, "out_dir": folder, "cache_dir": folder, "log_dir": folder,
               "log_file": str(Path(folder) / "log.txt"), "vocab_trg_path": str(Path(folder) / "vocab.json"), "eval_share": 0.02,
               "eval_steps": None, "save_steps": None, "max_epochs": 1000, "pretraining_model_path": None, "resume": "none", "name": None}
    start = time.time()
    stage = build_stage(options)
    prepared = time.time() - start
    stage.options["max_steps"] = options["max_steps"] or max(2, int(60 * minutes / seconds_per_step(stage)))
    loop = Loop(stage)
    loop.run()
    model, vocab, _ = load(Path(folder) / "TinySeek_Pre_final.pkl")
    scores = bits_per_char(model, vocab, data, every=50)
    return {"bits_per_char": {f"{minutes:g}": round(scores["bits_per_char"], 4)}, "steps": loop.step, "tokens": loop.tokens,
            "train_seconds": round(loop.seconds, 1), "prepare_seconds": round(prepared, 1), "characters": scores["characters"],
            "parameters": sum(p.numel() for p in model.parameters()), "vocab": len(vocab)}


def commit():
    asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or None


def main(argv=None):
    manager, command = parse(argv, "同样的训练时间，能学到多好？", stage="pre", extra=EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        result = run(manager.stage(), command.data, 0.25 if command.quick else command.minutes, folder)
    result.update(keys=command.overrides, preset=command.preset, seed=manager.stage()["seed"], commit=commit())
    if command.results:
        with open(command.results, "a", encoding="utf-8") as f:
            f.write(json.dumps(result, ensure_ascii=False) + "\n")
    print(f"{result['train_seconds']:.0f} 秒，{result['steps']} 步，{result['tokens']} token："
          f"留出数据 {next(iter(result['bits_per_char'].values())):.3f} 比特/字")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)

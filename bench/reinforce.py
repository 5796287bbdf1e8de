"""Reinforcement learning against more SFT, from one half-trained model of the built-in world, on the same questions.

    python bench/reinforce.py --model out/TinySeek_SFT2_1_s650.pkl [--train_minutes 10] [--seeds 0 1 2]
        [--arms rl kl general sft replay] [--tasks weekday fact ...] [any key of the stage rl]

Every arm starts from --model and learns from the same questions of --tasks, which no exam has; single-threaded. kl is
held near its start; general and replay (which is SFT) also learn rows of the start's own training data, so that the
rest is not forgotten. Scores are shares of demo_eval.jsonl: of the tasks that were trained, of all others, and pass@1
and pass@8 of sampled replies.
Last line of stdout: one JSON object.
"""

import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from chat_agent.evaluation.scoring import exact_scores
from chat_agent.load import load
from model.generate import generate_replies
from tools.checkpoint import read_checkpoint
from tools.cli import guarded, parse
from tools.demo_data import graded, train_exchange, turns, write_demo
from tools.config.keys import KEYS
from tools.config.stages import TABLE
from tools.config_manager import ConfigManager
from tools.template import render_prompt
from train_agent.trainers.build_stage import builder
from train_agent.trainers.reward_tuning import reward_train
from train_agent.trainers.sft_training import sft_train
from train_agent.trainers.trying.dry_loop import Rehearsal

ARMS = {"rl": ("rl", {}), "kl": ("rl", {"kl": 0.1, "scheduler": "cosine"}), "general": ("rl", {"replay_weight": 0.5}),
        "sft": ("sft", {}), "replay": ("sft", {"replay_share": 0.5})}                         # stage, its keys
TASKS = ("weekday", "fact", "count", "shopping", "antonym", "reverse")
EXTRA = [("--model", {"required": True, "metavar": "P", "help": "半熟的模型"}),
         ("--folder", {"default": "out/reinforce", "metavar": "D", "help": "放数据和各次训练的文件夹"}),
         ("--seeds", {"type": int, "nargs": "+", "default": [0], "help": "种子"}),
         ("--arms", {"nargs": "+", "default": list(ARMS), "choices": ARMS, "help": "比什么：rl kl general sft replay"}),
         ("--tasks", {"nargs": "+", "default": list(TASKS), "help": "学哪些任务"}),
         ("--questions", {"type": int, "default": 1000, "help": "每个任务几道题"}),
         ("--train_minutes", {"type": float, "default": 10.0, "help": "每次训练几分钟处理器时间"})]
SAMPLES = 8


def questions(path, tasks, each, seed=1):
    rng = random.Random(seed)
    rows = [{"conversations": turns([train_exchange(rng, task)]), "task": task} for task in tasks for _ in range(each)]
    rng.shuffle(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def passes(model, vocab, rows):
    """pass@1 and pass@8 of sampled replies, temperature 1."""
    prompts = [render_prompt(row["conversations"][:-1], vocab) for row in rows for _ in range(SAMPLES)]
    replies = generate_replies(model, prompts, 64, seed=0, temperature=1.0)
    right = [graded(row, vocab.decode(replies[i * SAMPLES + k].ids)) for i, row in enumerate(rows)
             for k in range(SAMPLES)]
    groups = [right[i:i + SAMPLES] for i in range(0, len(right), SAMPLES)]
    return {"pass@1": round(sum(right) / len(right), 4), "pass@8": round(sum(map(any, groups)) / len(groups), 4)}


def scores(path, exam, tasks):
    model, vocab, _ = load(path)
    tasked = exact_scores(model, vocab, str(exam))["by_task"]
    rows = [json.loads(line) for line in exam.read_text(encoding="utf-8").splitlines()]
    mine, others = ([share for task, share in tasked.items() if (task in tasks) == wanted] for wanted in (True, False))
    return {"trained": round(statistics.mean(mine), 4), "others": round(statistics.mean(others), 4),
            **passes(model, vocab, [row for row in rows if row["task"] in tasks][::3]),
            "by_task": {task: round(share, 3) for task, share in tasked.items()}}


def cpu_seconds(stage, options, steps=12):
    """CPU seconds of a step: what others do on the machine does not count."""
    with Rehearsal(builder(stage)(options)) as loop:
        groups = loop.groups()
        for _ in range(2):
            loop.optimize(next(groups), 1)
        begin = time.process_time()
        for _ in range(steps):
            loop.optimize(next(groups), 1)
        return (time.process_time() - begin) / steps


def arm(stage, own, command, home, data, seed):
    """One training, with keys of its `own`, in the folder `home` -> the path of its model."""
    keys = {"out_dir": str(home), "log_dir": str(home / "logs"), "log_file": str(home / "log.txt"), "seed": seed,
            "json_data_path": str(data), "pretraining_model_path": command.model, "threads": 1, "resume": "none",
            "replay_data_path": str(home.parent / "demo_sft.jsonl"), "mixed_precision": "no", "logging_steps": 1,
            "save_steps": None, "max_epochs": 1000, "max_steps": 10 ** 6, **own,
            **{k: v for k, v in command.overrides.items() if stage in KEYS[k].stages or KEYS[k].scope != "stage"}}
    options = ConfigManager(overrides=keys, preset="tiny", stage=stage).stage(stage)
    if "max_steps" not in command.overrides:
        options["max_steps"] = round(60 * command.train_minutes / cpu_seconds(stage, options))
    (reward_train if stage == "rl" else sft_train)(options)
    return home / f"TinySeek_{TABLE[stage].label}_final.pkl"


def main(argv=None):
    _, command = parse(argv, "强化学习和继续 SFT：同样的起点、同样的题、同样的时间", stage="rl", extra=EXTRA)
    torch.set_num_threads(1)
    folder = Path(command.folder)
    exam = write_demo(folder)["eval"]
    data = questions(folder / "questions.jsonl", command.tasks, command.questions)
    found = {"start": scores(command.model, exam, command.tasks)}
    print(found, flush=True)
    for seed in command.seeds:
        for name in command.arms:
            begin = time.process_time()
            path = arm(*ARMS[name], command, folder / f"{name}_{seed}", data, seed)
            minutes = round((time.process_time() - begin) / 60, 2)
            spent = {"cpu_minutes": minutes, "steps": read_checkpoint(path)["step"]}
            found[f"{name}_{seed}"] = spent | scores(path, exam, command.tasks)
            print(name, seed, found[f"{name}_{seed}"], flush=True)
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)

"""Adapt one base in many ways and measure each: what the adapter benches share."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chat_agent.load import load
from model.generate import generate_replies
from tools.checkpoint import final_name, read_checkpoint
from tools.config.keys import MODEL_KEYS
from tools.demo_data import grade
from tools.template import render_prompt
from train_agent.trainers.loop import Loop
from train_agent.trainers.lora_tuning import build_stage as lora_stage
from train_agent.trainers.memory_tuning import build_stage as memory_stage
from train_agent.trainers.prefix_tuning import build_stage as prefix_stage
from train_agent.trainers.sft_training import build_stage as sft_stage

STAGES = {"lora": lora_stage, "prefix": prefix_stage, "memory": memory_stage, "sft": sft_stage}
SPARE = 16               # tokens a reply may be longer than the longest right one


@dataclass
class Workplace:
    """manager: the configuration; base: path of the model to adapt; folder: where everything goes; general: the guard's
    data."""

    manager: object
    base: str
    folder: Path
    general: str

    def adapt(self, kind, name, rows, held=None, **keys):
        """Train one adapter (kind "sft": every weight) on the file `rows` -> its path and module, what it cost, and
        what the base forgot.

        cpu_seconds: of all threads, from reading the data to the final file. Losses in nats per target, both heads
        together.
        """
        places = {"out_dir": self.folder, "cache_dir": self.folder / "cache", "log_dir": self.folder,
                  "log_file": self.folder / "log.txt",
                  "vocab_trg_path": self.folder / "vocab.json", "json_data_path": rows, "eval_data_path": held,
                  "pretraining_model_path": self.base, "replay_data_path": self.general}
        options = {**self.manager.stage(kind), **shape_of(self.base), **{k: v and str(v) for k, v in places.items()},
                   "eval_share": 0.02, "name": name, "resume": "none", "init_from": None, "save_best_model": False,
                   **keys}
        wall, cpu = time.perf_counter(), time.process_time()
        stage = STAGES[kind](options)
        loop = Loop(stage)
        metrics = loop.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        path = self.folder / name / final_name(stage.label)
        return {"path": path, "model": stage.model, "steps": loop.step, "cpu_seconds": round(cpu, 1),
                "seconds": round(wall, 1),
                "trainable": sum(p.numel() for _, p, _ in stage.trainable()), "bytes": path.stat().st_size,
                "eval_loss": metrics.get("eval_loss"),
                "general": [metrics.get("general_first"), metrics.get("general_loss")]}


def shape_of(path):
    """The configuration's keys that say which tensors the model at `path` has."""
    return {k: v for k, v in read_checkpoint(path)["config"].items() if k in MODEL_KEYS and k != "vocab_size"}


def answers(path, rows):
    """The greedy reply of the model at `path` to every row {"conversations"}, whose last message is a right one."""
    model, vocab, _ = load(path)
    return [vocab.decode(ids) for ids in replies(model, vocab, rows, room_for(vocab, rows))]


def replies(model, vocab, rows, room):
    """Greedy replies of at most `room` ids, written side by side. -> lists of ids"""
    return [reply.ids for reply in generate_replies(model,
                                                    [render_prompt(row["conversations"][:-1], vocab) for row in rows],
                                                    room)]


def room_for(vocab, rows):
    return max(map(len, vocab.encode_many([expected(row) for row in rows]))) + SPARE


def expected(row):
    return row["conversations"][-1]["content"]


def marks(path, rows):
    """(N,) bool: which rows are answered exactly."""
    return np.array([grade(expected(row), reply) for row, reply in zip(rows, answers(path, rows))])


def paired(before, after):
    """Marks of two models on the same items -> {"n", "before", "after", "fall" in points, "lost", "gained", "margin"}.

    margin: half the 95 % interval of the fall, in points, from the items on which the two differ.
    """
    lost, gained, n = int((before & ~after).sum()), int((after & ~before).sum()), len(before)
    spread = lost + gained - (lost - gained) ** 2 / n
    return {"n": n, "before": round(100 * before.mean(), 2), "after": round(100 * after.mean(), 2),
            "fall": round(100 * (lost - gained) / n, 2), "lost": lost, "gained": gained,
            "margin": round(196 * spread ** 0.5 / n, 2)}

"""What the seven experiments share: a few rows of the built-in world, a training, a picture, the numbers beside it.

An experiment is one file here with a `main(argv)`; its picture and its numbers (`loss.png`, `loss.json`) lie beside its
page. The page quotes the numbers; who runs it again sees both, those of the page and their own.
"""

import contextlib
import json
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if Path(sys.argv[0]).resolve().parent == HERE:       # an experiment is what was started
    check_machine()

import matplotlib
import torch
from matplotlib.figure import Figure

from model.generate import generate_replies
from tools.cli import parse
from tools.config_manager import ConfigManager
from tools.demo.noise import PLAIN as PLAINLY
from tools.demo.tasks import to_learn
from tools.demo_data import TASKS, draw_part, grade, told, turns
from tools.logs.reader import read_log
from tools.pictures.style import COLORS, GREY, INK, Page, save  # noqa: F401  (for the experiments)
from tools.template import render_prompt
from tools.vocab import Vocab
from train_agent.trainers.build_stage import builder
from train_agent.trainers.loop import Loop

SHAPE = {"n_layer": 2, "n_head": 4, "d_model": 128, "d_c": 32, "d_r": 16, "hidden": 128, "other_experts": 8,
         "shared_experts": 1, "keep": 2}
PLAIN = {"device": "cpu", "threads": 1, "mixed_precision": "no", "token_kind": "char", "seed": 0, "max_len": 128,
         "batch_size": 8, "max_epochs": 1000, "optimizer": "muon", "init_lr": 4e-3, "scheduler": "cosine",
         "warmup_steps": 20, "min_lr_ratio": 0.02, "eval_share": 0.0, "eval_steps": None, "save_steps": None,
         "logging_steps": 1, "save_best_model": False, "pretraining_model_path": None, "num_workers": 0}


# ---- what is learned ----

def texts(tasks, count, seed=0):
    """`count` sentences of running text of the built-in world, as rows."""
    rng = random.Random(seed)
    return [{"text": told(rng, rng.choice(tasks))} for _ in range(count)]


def questions(tasks, count, seed=0, held=False):
    """`count` (question, answer) of these tasks in plain words. held: different ones, of contents that no training
    question has."""
    rng = random.Random(f"{seed}/{held}")
    if not held:
        return [to_learn(rng, TASKS[rng.choice(tasks)], PLAINLY) for _ in range(count)]
    found = {}
    while len(found) < count:
        task = TASKS[rng.choice(tasks)]
        found.setdefault(*task.ask(rng, draw_part(task, rng, "eval")))
    return list(found.items())


def dialogues(pairs):
    return [{"conversations": turns([pair])} for pair in pairs]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def vocab_of(folder, rows, **options):
    """The vocabulary of these rows, by characters unless asked otherwise, as `folder`/vocab.json."""
    spoken = [message["content"] for row in rows for message in row.get("conversations", ())]
    words = Vocab.create_vocab([row["text"] for row in rows if "text" in row] + spoken + ["："], vocab_size=5000,
                               texts=True, progress=False, **options)
    words.save(folder / "vocab.json")
    return words


# ---- training and asking ----

def stage_of(folder, stage, rows, steps, name=None, **keys):
    """A Stage, as the scripts in train_agent/ build theirs; all its files lie in `folder`."""
    data = write_rows(folder / f"{name or stage}.jsonl", rows)
    places = {"out_dir": folder, "log_dir": folder / "logs", "log_file": folder / "log.txt",
              "cache_dir": folder / "cache", "vocab_trg_path": folder / "vocab.json", "json_data_path": data}
    given = {**SHAPE, **PLAIN, **{key: str(path) for key, path in places.items()}, "max_steps": steps, "name": name,
             **keys}
    known = ConfigManager({}, stage=stage).stage(stage)
    return builder(stage)(ConfigManager({}, {k: v for k, v in given.items() if k in known}, stage=stage).stage(stage))


class Watched(Loop):
    """The project's loop, with somebody who looks at the model now and then: look(step, model), before the first step
    and after every `every`-th."""

    def __init__(self, stage, look, every):
        super().__init__(stage)
        self.look, self.every = look, every

    def optimize(self, group, chunk):
        if self.step == 0:
            self.seen()
        super().optimize(group, chunk)
        if self.step % self.every == 0:
            self.seen()

    def seen(self):
        self.look(self.step, self.model.eval())
        self.model.train()


def train(folder, stage, rows, steps, name=None, change=None, look=None, every=10, **keys):
    """-> (the trained model, its log as tools.logs.reader.Run, path of its .pkl). change(stage): what the experiment
    does to it before it starts; look, every: see Watched."""
    built = stage_of(folder, stage, rows, steps, name, **keys)
    if change:
        change(built)
    (Watched(built, look, every) if look else Loop(built)).run()
    home = folder / name if name else folder
    log = max((folder / "logs").rglob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return built.model.eval(), read_log(log)[-1], home / f"TinySeek_{built.label}_final.pkl"


def replies(model, vocab, asked):
    """Greedy replies to these questions."""
    prompts = [render_prompt([{"role": "user", "content": question}], vocab) for question in asked]
    return [vocab.decode(reply.ids) for reply in generate_replies(model, prompts, 40)]


def score(model, vocab, pairs):
    """Share of (question, answer) that are answered exactly."""
    said = replies(model, vocab, [question for question, _ in pairs])
    return sum(grade(answer, reply) for (_, answer), reply in zip(pairs, said)) / len(pairs)


# ---- what is shown ----

def options_of(argv, name, about, steps, what="每次训练多少步"):
    """The command line of an experiment."""
    extra = [("--out", {"type": Path, "default": HERE / f"{name}.png", "metavar": "图片",
                        "help": f"图片写到哪里，默认 docs/course/{name}.png"}),
             ("--steps", {"type": int, "default": steps, "metavar": "N", "help": f"{what}，默认 {steps}"}),
             ("--record", {"action": "store_true", "help": f"把这次的数字写成 docs/course/{name}.json，这一章引用它"})]
    options = parse(argv, about, extra=extra, reads=())[1]
    options.name, options.begin = name, time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return options


@contextlib.contextmanager
def drawing(options, columns, width=12.0, height=4.2, **ratios):
    """A figure with so many places side by side -> its axes; written to --out at the end."""
    page = Page()
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, **ratios)[0]
        yield axes
        save(figure, options.out)


def told_numbers(options, numbers):
    """Print the numbers (floats of numpy as well), beside those of the page, and as one line of JSON at the end."""
    numbers = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
    minutes = (time.process_time() - options.begin) / 60
    kept = HERE / f"{options.name}.json"
    book = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    print(f"{'这次':>10} {'书里':>10}")
    for name, value in numbers.items():
        print(f"{value:>10} {book.get(name, '–'):>10}  {name}")
    print(f"图：{options.out}；处理器时间 {minutes:.1f} 分钟")
    if options.record:
        kept.write_text(json.dumps(numbers, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({**numbers, "minutes": round(minutes, 2)}, ensure_ascii=False))

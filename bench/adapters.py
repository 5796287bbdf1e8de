"""What do LoRA, a prefix, a memory and full SFT learn on one base, what do they cost, and what does the base forget?

    python bench/adapters.py [--quick] [--parts identity folds shopping]
    python bench/adapters.py --identity ../shared/data/identity.jsonl --shopping ../shared/data/shopping.jsonl

identity: another name from the built-in set, without and with general rows mixed in. folds: the same on a file of
who-are-you rows, five times with another fifth held out. shopping: the four ways, same number of steps, every 50th row
held out. The base is a trained model (run.py makes one). Forgetting: the built-in questions, answered by base and
adapted model alike, but for those that ask for the name, whose answer is meant to change; the general rows that are
mixed in do not say the old name either. The last line of stdout is one JSON object.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import numpy as np

from bench.adapt import Workplace, answers, expected, marks, paired
from chat_agent.evaluate import table
from tools.checkpoint import read_checkpoint
from tools.cli import guarded, parse
from tools.demo.adapters import OTHER_NAME, write_adapters
from tools.demo_data import HAND, write_demo
from tools.errors import UserError
from tools.vocab import Vocab

PARTS = ("identity", "folds", "shopping")
OLD_NAME, FOLDS, EVERY = "小寻", 5, 50
BATCH = 4                # rows of max_len tokens per step, the same for all four ways
WAYS = {"lora": "LoRA", "prefix": "前缀", "memory": "记忆", "sft": "整个模型"}
OPTIONS = [
    ("--model", {"metavar": "文件", "help": "底座（默认 out_dir 里的 TinySeek_SFT_final.pkl）"}),
    ("--identity", {"metavar": "文件", "help": "问身份的对话（JSONL），五折；不给就跳过这一项"}),
    ("--new_name", {"default": "tinyseek", "metavar": "名字", "help": "--identity 的回答里的新名字（tinyseek）"}),
    ("--shopping", {"metavar": "文件", "help": "购物清单对话（JSONL），每 50 行留出一行；不给就用内置的清单专家数据"}),
    ("--parts", {"nargs": "+", "choices": PARTS, "default": list(PARTS), "help": "只做其中几项"}),
    (
        "--replay", {"nargs": "+", "type": float, "default": [0.0, 0.2], "metavar": "X",
                     "help": "换名字时混入的通用数据，每个比例各训练一次（0 和 0.2）"}),
    ("--shopping_steps", {"type": int, "default": 400, "metavar": "N", "help": "四种办法各训练多少步（400）"}),
    ("--ways", {"nargs": "+", "choices": list(WAYS), "default": list(WAYS), "help": "购物清单只比较其中几种办法"}),
    ("--results", {"metavar": "文件", "help": "把结果（一行 JSON）追加到这个文件"}),
    ("--quick", {"action": "store_true", "help": "两步的试跑，只看能不能工作"}),
]


def main(argv=None):
    manager, options = parse(argv, "LoRA、前缀、记忆、整个模型：学到多少，花费多少，忘掉多少", extra=OPTIONS)
    base = options.model or str(Path(manager.config["out_dir"]) / "TinySeek_SFT_final.pkl")
    if not Path(base).is_file():
        raise UserError(f"找不到底座 {base}。请先运行 python run.py，或用 --model 指定。", 3)
    world = write_demo(HAND)
    with tempfile.TemporaryDirectory() as folder:
        general = write_rows(Path(folder) / "general.jsonl",
                             [row for row in read_rows(world["sft"])
                              if OLD_NAME not in json.dumps(row, ensure_ascii=False)])
        work = Workplace(manager, base, Path(folder), general)
        memory = General(base, world["eval"], 100 if options.quick else 1)
        results = {"base": Path(base).stat().st_size, "keys": options.overrides}
        for name in options.parts:
            results[name] = {"identity": identity, "folds": folds, "shopping": shopping}[name](work, memory, options)
    if options.results:
        with open(options.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(results, ensure_ascii=False) + "\n")
    print(json.dumps(results, ensure_ascii=False))


class General:
    """The built-in questions but for the name's: what a base could do, and what is left of it."""

    def __init__(self, base, path, every):
        self.rows = [row for row in read_rows(path) if row["task"] != "identity"][::every]
        self.base = marks(base, self.rows)

    def left(self, path):
        return paired(self.base, marks(path, self.rows))


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_rows(path, rows):
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def short(options, steps=None):
    """Overrides of a training: its number of steps where it is given or the run is a quick one."""
    return {"max_steps": 2} if options.quick else {"max_steps": steps} if steps else {}


# ---------------------------------------------------------------- another name

def identity(work, memory, options):
    """LoRA on the built-in rows under another name -> {replay: figures}."""
    paths, found = write_adapters(HAND), {}
    asked = read_rows(paths["identity_eval"])
    for replay in options.replay:
        cost = work.adapt("lora", f"identity_{replay}", paths["identity"], paths["identity_eval"], replay_share=replay,
                          **short(options))
        found[f"replay {replay:g}"] = {**cost, **named(cost["path"], asked, OTHER_NAME), **memory.left(cost["path"])}
    return told("内置数据：换个名字", found, Path(work.base).stat().st_size)


def folds(work, memory, options):
    """LoRA on the file --identity, five times with another fifth of its rows held out -> {replay: figures over all
    folds}."""
    if not options.identity:
        return None
    rows, found = read_rows(options.identity), {}
    for replay in options.replay:
        parts = []
        for fold in range(1 if options.quick else FOLDS):
            train = [row for i, row in enumerate(rows) if i % FOLDS != fold]
            held = [row for row in rows[fold::FOLDS] if options.new_name in expected(row)]
            places = [write_rows(work.folder / f"{part}{fold}.jsonl", part_rows)
                      for part, part_rows in (("fold", train), ("held", held))]
            cost = work.adapt("lora", f"fold{fold}_{replay}", *places, replay_share=replay, **short(options))
            parts.append({**cost, **named(cost["path"], held, options.new_name), **memory.left(cost["path"])})
        found[f"replay {replay:g}"] = pooled(parts)
    return told(f"{Path(options.identity).name}：{len(rows)} 行，五折", found, Path(work.base).stat().st_size)


def named(path, rows, name):
    """How many of these questions are answered with the new name, and without the old one."""
    replies = answers(path, rows)
    return {"asked": len(rows), "renamed": sum(name in reply and OLD_NAME not in reply for reply in replies)}


def pooled(parts):
    """Figures of several folds as those of one: counts add up, costs are the dearest fold's, the fall is the mean and
    the worst."""
    falls = [part["fall"] for part in parts]
    worst = parts[int(np.argmax(falls))]
    return {**worst, "cpu_seconds": max(p["cpu_seconds"] for p in parts), "seconds": max(p["seconds"] for p in parts),
            "asked": sum(p["asked"] for p in parts), "renamed": sum(p["renamed"] for p in parts),
            "renamed_by_fold": [round(p["renamed"] / p["asked"], 3) for p in parts], "falls": falls,
            "mean_fall": round(float(np.mean(falls)), 2)}


def told(title, found, base):
    """Print the figures of identity or folds as a table and pass them on. base: bytes of the base's file."""
    lines = [[title, *found]]
    for name, text in (("用新名字回答", lambda f: f"{f['renamed']}/{f['asked']} = {f['renamed'] / f['asked']:.1%}"),
                       ("训练的 CPU 秒", lambda f: f"{f['cpu_seconds']:.0f}（{f['steps']} 步）"),
                       ("文件（占底座）", lambda f: f"{f['bytes']:,} 字节（{f['bytes'] / base:.1%}）"),
                       ("内置考题：之前 → 之后", lambda f: f"{f['before']:.2f} → {f['after']:.2f}（{f['n']} 题）"),
                       ("下降（百分点）", lambda f: f"{f['fall']:.2f} ± {f['margin']:.2f}"
                        + (f"，平均 {f['mean_fall']:.2f}" if "falls" in f else "")),
                       ("通用损失", lambda f: f"{f['general'][0]:.3f} → {f['general'][1]:.3f}")):
        lines.append([name, *(text(f) for f in found.values())])
    print(table(lines) + "\n", flush=True)
    return {name: figures(f) for name, f in found.items()}


def figures(found):
    """What of these results goes into the JSON line: not the file, which is gone by then, nor the module."""
    return {k: v for k, v in found.items() if k not in ("path", "model")}


# ---------------------------------------------------------------- four ways to learn the same

def shopping(work, memory, options):
    """LoRA, prefix, memory and full SFT on shopping lists -> {"rows": ..., way: figures}."""
    if options.shopping:
        rows = read_rows(options.shopping)
        held, train = rows[::EVERY], [row for i, row in enumerate(rows) if i % EVERY]
    else:
        held, train = (read_rows(write_adapters(HAND)[name]) for name in ("shopping_eval", "shopping"))
    held = held[:10] if options.quick else held
    places = [write_rows(work.folder / f"shopping_{name}.jsonl", part)
              for name, part in (("train", train), ("held", held))]
    right = [expected(row) for row in held]
    before = answers(work.base, held)
    found = {"base": {"f1": item_f1(right, before), "loose_f1": item_f1(right, before, cells=2)}}
    for kind in options.ways:
        cost = work.adapt(kind, kind, *places, max_epochs=100, batch_size=BATCH,
                          **short(options, options.shopping_steps))
        replies = answers(cost["path"], held)
        found[kind] = {**figures(cost), "f1": item_f1(right, replies), "loose_f1": item_f1(right, replies, cells=2),
                       "exact": sum(a.strip() == b.strip() for a, b in zip(right, replies)),
                       **memory.left(cost["path"])}
    print_shopping(found, len(train), len(held))
    return {"train": len(train), "held": len(held), **rare(work.base, train), "ways": found}


def rare(base, rows):
    """How much of these rows the base's vocabulary has to spell in bytes, and how many are longer than its window."""
    payload = read_checkpoint(base)
    vocab = Vocab.from_state(payload["vocab"])
    ids = vocab.encode_many(["".join(m["content"] for m in row["conversations"]) for row in rows])
    flat = np.concatenate(ids)
    return {"byte_share": round(float(((flat >= 16) & (flat < 272)).mean()), 3),
            "mean_tokens": round(len(flat) / len(ids), 1),
            "too_long": sum(len(i) > payload["run"]["max_len"] - 8 for i in ids)}


def table_items(text, cells=3):
    """|牛奶|两盒|常温|苹果|三斤|没有| -> a Counter of (item, quantity, detail); the first `cells` of each, white space aside."""
    words = [word.strip() for word in text.strip().strip("|").split("|")]
    return Counter(tuple(words[i:i + cells]) for i in range(0, len(words) - 2, 3))


def item_f1(right, replies, cells=3):
    """F1 over all items of all lists: an item counts where its first `cells` cells are the same."""
    pairs = [(table_items(a, cells), table_items(b, cells)) for a, b in zip(right, replies)]
    hits = sum((a & b).total() for a, b in pairs)
    return round(2 * hits / max(1, sum(a.total() + b.total() for a, b in pairs)), 4)


def print_shopping(found, train, held):
    lines = [[f"购物清单（{train} 行训练，{held} 行留出）", "可训练参数", "文件字节", "秒", "CPU 秒", "物品 F1", "（不看要求）", "通用损失", "内置考题"]]
    lines.append(["底座", "", "", "", "", f"{found['base']['f1']:.3f}", f"{found['base']['loose_f1']:.3f}", "", ""])
    for kind, f in found.items():
        if kind == "base":
            continue
        lines.append(
            [f"{WAYS[kind]}（{f['steps']} 步）", f"{f['trainable']:,}", f"{f['bytes']:,}", f"{f['seconds']:.0f}",
             f"{f['cpu_seconds']:.0f}",
                      f"{f['f1']:.3f}", f"{f['loose_f1']:.3f}", f"{f['general'][0]:.3f} → {f['general'][1]:.3f}",
                      f"{f['before']:.1f} → {f['after']:.1f}"])
    print(table(lines) + "\n", flush=True)


if __name__ == "__main__":
    guarded(main)

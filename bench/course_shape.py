"""A character-level GPT of the build-it-yourself course's shape on about a megabyte of text: what is its real, held-out
loss?

    python bench/course_shape.py --data text.jsonl [--out FOLDER] [--quick]

4 layers, 256 wide, 4 heads, windows of 128 characters, 32 of them a step, 3,000 steps with Trainer and TextDataset.
Rows whose zero-based number is divisible by 50 are held out. Run again to go on where it was stopped. Beside the curve
there are three guards against a result that is too good: what counting characters gets, causality of the trained model,
and windows shared by both sides.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import numpy as np
import torch

from model import ModelConfig, TinySeek
from tools.cli import guarded, parse
from tools.formats import BadLines, read_rows, row_texts
from tools.logs.reader import read_log
from tools.vocab import Vocab
from train_agent.trainers import TextDataset, Trainer, TrainingConfig

SHAPE = dict(n_layer=4, d_model=256, n_head=4, attention="gqa", position="learned", norm="layer", activation="gelu",
             dense_hidden=1024,
             use_moe=False, use_fc2=False, dropout=0.1)
LENGTH, BATCH, STEPS, TRAIN_BYTES, HELD_BYTES = 128, 32, 3000, 1_100_000, 110_000
EXTRA = [("--data", {"default": str(ROOT / "data/demo_pre.jsonl"), "help": "JSONL 文本，默认内置预训练数据"}),
         ("--out", {"default": str(ROOT / "out/course_shape"), "help": "检查点、日志和曲线的文件夹；再运行一次会接着训"}),
         ("--steps", {"type": int, "default": STEPS, "help": "训练步数"}),
         ("--quick", {"action": "store_true", "help": "小模型训练几步，只看能不能跑"})]


def sample(rows, size):
    """As many whole rows as fit into `size` bytes of UTF-8, spread evenly over all of them."""
    total = sum(len(text.encode()) for text in rows)
    kept, taken, seen = [], 0, 0
    for text in rows:
        seen += len(text.encode())
        if taken < size * seen / total:
            kept.append(text)
            taken += len(text.encode())
    return "\n".join(kept)


def write_texts(data, folder, train_bytes, held_bytes):
    """-> paths of train.txt and held.txt; disjoint rows of `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["\n".join(row_texts(row)) for row in read_rows(data, bad=BadLines())]
    parts = {"train": [r for i, r in enumerate(rows) if i % 50], "held": rows[::50]}
    for name, size in (("train", train_bytes), ("held", held_bytes)):
        (folder / f"{name}.txt").write_text(sample(parts[name], size), encoding="utf-8")
    return folder / "train.txt", folder / "held.txt"


def counted_bits(train, held):
    """Bits per character of held-out text under the characters' own frequencies: what a model that reads nothing
    gets."""
    counts = Counter(train)
    total, kinds = sum(counts.values()), len(counts) + 1
    return sum(-math.log2((counts[c] + 1) / (total + kinds)) for c in held) / len(held)


def shared_windows(train, held, size=32):
    """Share of the held-out text's `size`-character pieces that also stand in the training text."""
    known = {train[i:i + size] for i in range(len(train) - size)}
    pieces = [held[i:i + size] for i in range(0, len(held) - size, size)]
    return sum(piece in known for piece in pieces) / len(pieces)


@torch.no_grad()
def leak(model, ids):
    """The largest change of a logit before position t when everything from t on is replaced; 0 in a causal model."""
    model = model.cpu().eval()
    ids, t = ids[None], len(ids) // 2
    other = ids.clone()
    other[:, t:] = ids[:, t:].flip(1)
    return float((model(ids).logits_1 - model(other).logits_1)[:, :t].abs().max())


def draw(log, per_char, path):
    """Training and held-out loss in bits per character over the steps."""
    import matplotlib
    from matplotlib.figure import Figure

    from tools.plot import curve, thinned
    from tools.pictures.style import Page
    run, page = read_log(log)[-1], Page()
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
        ax = figure.add_subplot()
        x, raw, smooth = curve(run, "ce_1")
        ax.plot(*thinned(x, raw * per_char), color="#2563eb", alpha=0.25)
        ax.plot(*thinned(x, smooth * per_char), color="#2563eb", label=page.word("train"))
        for name, (steps, losses) in run.evaluations().items():
            ax.plot(steps, losses * per_char, "o--", color="#ea580c", label=f"{page.word('eval')} {name}")
        ax.set(xlabel=page.word("step"), ylabel="bits / character")
        ax.legend()
        figure.savefig(path)


def run(data, out, steps, quick):
    out, shape, batch = Path(out), dict(SHAPE), BATCH
    if quick:
        shape, batch, steps = {**SHAPE, "n_layer": 1, "d_model": 32, "dense_hidden": 32}, 4, min(steps, 6)
    texts = write_texts(data, out, *((TRAIN_BYTES, HELD_BYTES) if not quick else (30_000, 6_000)))
    train, held = (path.read_text(encoding="utf-8") for path in texts)
    vocab = Vocab.create_vocab([train], vocab_size=8192, texts=True, progress=False)
    sets = [TextDataset(path, vocab, LENGTH) for path in texts]
    torch.manual_seed(0)
    model = TinySeek(ModelConfig(vocab_size=len(vocab), max_position=LENGTH, **shape))
    often = max(1, steps // 15)
    settings = TrainingConfig(batch_size=batch, seq_len=LENGTH, epochs=10_000, warmup_steps=min(1000, steps // 3),
                              eval_interval=often,
                              save_interval=often, resume="auto", output_dir=str(out), run_name="run",
                              more={"max_steps": steps, "logging_steps": max(1, steps // 300)})
    trainer = Trainer(model, *sets, settings, tokenizer=vocab)
    metrics = trainer.train()
    per_char = len(sets[1].ids) / len(held) / math.log(2)                         # nats per token -> bits per character
    log = max((out / "run" / "logs").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
    steps_at, losses = read_log(log)[-1].evaluations()["held"]
    draw(log, per_char, out / "course_shape.png")
    return {"bits_per_char": round(metrics["eval_ce_1"] * per_char, 4),
            "best_bits_per_char": round(float(losses.min()) * per_char, 4),
            "best_step": int(steps_at[np.argmin(losses)]), "train_bits_per_char": round(metrics["ce_1"] * per_char, 4),
            "counted_bits_per_char": round(counted_bits(train, held), 4),
            "shared_windows": round(shared_windows(train, held), 4),
            "leak": leak(model, sets[1][0][0]), "steps": trainer.loop.step, "train_characters": len(train),
            "held_characters": len(held),
            "vocab": len(vocab), "parameters": sum(p.numel() for p in model.parameters()),
            "precision": trainer.loop.precision,
            "train_seconds": round(trainer.loop.seconds, 1), "picture": str(out / "course_shape.png")}


def main(argv=None):
    _, command = parse(argv, "课程结构的字符级小 GPT：留出文本上到底多少比特/字？", stage="pre", extra=EXTRA)
    result = run(command.data, command.out, command.steps, command.quick)
    print(f"留出 {result['bits_per_char']:.3f} 比特/字（最低 {result['best_bits_per_char']:.3f}，第 {result['best_step']} 步；"
          f"只数字频 {result['counted_bits_per_char']:.3f}；训练 {result['train_bits_per_char']:.3f}）；未来泄漏 {result['leak']:g}")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)

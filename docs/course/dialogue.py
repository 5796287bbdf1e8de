"""Chapter 5: the same dialogues, learned in three ways: only the replies, everything, only the questions."""

import tempfile
from pathlib import Path

import numpy as np
from course import (COLORS, INK, dialogues, drawing, options_of, questions, replies, score, texts, told_numbers, train,
                    vocab_of)

from chat_agent.evaluation.scoring import document_losses
from chat_agent.load import load
from tools.template import render
from tools.vocab import FIRST_BYTE

TASKS = ["measure", "fact", "antonym"]
ASKED = "三（）鱼"


def everything(supervised, ids):
    return np.ones_like(supervised)


def questions_only(supervised, ids):
    """What others say, and the end of what they say: a model that learns to ask."""
    return ~supervised & (ids >= FIRST_BYTE)


WAYS = {"只学回答": None, "什么都学": everything, "只学提问": questions_only}


def relearn(which):
    """change(stage) for `train`: other ids of the same dialogues are targets. which(supervised, ids) -> bool"""
    def change(stage):
        cache = stage.train.cache
        ids, supervised = cache.split(np.asarray(cache.tokens))
        cache.tokens = ids | np.where(which(supervised, ids), cache.top, 0)
    return change if which else None


def nats(model, vocab, pairs):
    """-> nats per token of the questions, of the replies."""
    documents = [render(row["conversations"], vocab) for row in dialogues(pairs)]
    asked = [(ids, questions_only(supervised, ids)) for ids, supervised in documents]
    return [float(sum(total) / sum(count)) for total, count in
            (document_losses(model, asked), document_losses(model, documents))]


def draw(options, found):
    names, places = list(found), np.arange(len(found))
    with drawing(options, 3, width_ratios=[1, 1.2, 1.3]) as (bars, losses, said):
        shares = [100 * right for right, _, _ in found.values()]
        bars.bar(places, shares, color=COLORS[0], width=0.6)
        for place, share in zip(places, shares):
            bars.text(place, share + 2, f"{share:.0f}", ha="center")
        bars.set(title="留出的题答对（%）", ylim=(0, 112))
        for shift, number, color, name in ((-0.2, 0, COLORS[1], "提问"), (0.2, 1, COLORS[0], "回答")):
            losses.bar(places + shift, [lost[number] for _, lost, _ in found.values()], 0.38, color=color, label=name)
        losses.set(title="猜错的程度（每个词元的损失）")
        losses.legend()
        for ax in (bars, losses):
            ax.set_xticks(places, names, fontsize=9)
        said.axis("off")
        said.set_title(f"问：{ASKED}")
        for place, (name, (_, _, reply)) in enumerate(found.items()):
            said.text(0, 0.85 - 0.24 * place, f"{name}：", color=COLORS[0], transform=said.transAxes)
            said.text(0.04, 0.75 - 0.24 * place, reply[:18] or "（一个字也没有）", color=INK, transform=said.transAxes)


def main(argv=None):
    options = options_of(argv, "dialogue", "第五章：哪些词元计入损失，决定它学会什么", 250)
    rows, talk = texts(TASKS, 20 * options.steps), dialogues(questions(TASKS, 20 * options.steps))
    exam, found = questions(TASKS, 150, held=True), {}
    shape = dict(use_moe=False, use_fc2=False)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        vocab = vocab_of(folder, rows + talk)
        made = {"只预训练": train(folder, "pre", rows, options.steps, name="base", **shape)[2]}
        for number, (name, which) in enumerate(WAYS.items()):
            made[name] = train(folder, "sft", talk, options.steps, name=f"way{number}", change=relearn(which),
                               pretraining_model_path=str(made["只预训练"]), **shape)[2]
        for name, path in made.items():
            model = load(path)[0]
            found[name] = score(model, vocab, exam), nats(model, vocab, exam), replies(model, vocab, [ASKED])[0]
            print(f"{name}：{ASKED} -> {found[name][2]}")
    draw(options, found)
    numbers = {}
    for name, (right, (asked, answered), _) in found.items():
        numbers |= {f"{name}：答对（%）": round(100 * right, 1), f"{name}：提问的损失": round(asked, 2),
                    f"{name}：回答的损失": round(answered, 2)}
    told_numbers(options, numbers)


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

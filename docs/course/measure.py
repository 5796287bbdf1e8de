"""Chapter 7: the score on what was learned, the score on what was held out, and how far both can be trusted."""

import random
import tempfile
from pathlib import Path

import numpy as np
from course import COLORS, dialogues, drawing, options_of, questions, replies, told_numbers, train, vocab_of

from tools.demo_data import grade

SIZES, SEEDS = (30, 100, 300, 1000), (0, 1, 2)
TASKS = ["measure"]
EXAM, SHORT, TIMES = 400, 40, 1000      # questions held out, questions of a short exam, how many short exams


def marks(model, vocab, pairs):
    """(N,) bool: which (question, answer) are answered exactly."""
    said = replies(model, vocab, [question for question, _ in pairs])
    return np.array([grade(answer, reply) for (_, answer), reply in zip(pairs, said)])


def short_exams(right):
    """Scores (TIMES,) of exams of SHORT questions each, drawn from the marks of all."""
    rng = random.Random(0)
    return np.array([np.mean(rng.sample(right.tolist(), min(SHORT, len(right)))) for _ in range(TIMES)])


def draw(options, learned, held, exams, unlucky):
    with drawing(options, 2, width=11, width_ratios=[1.2, 1]) as (sizes, spread):
        for color, name, scores in ((COLORS[1], "训练过的题", learned), (COLORS[0], "留出的题", held)):
            means = [100 * np.mean(scores[size]) for size in SIZES]
            sizes.plot(range(len(SIZES)), means, color=color, label=name)
            for place, size in enumerate(SIZES):
                sizes.plot([place] * len(SEEDS), 100 * np.array(scores[size]), "o", color=color, alpha=0.6)
        sizes.set_xticks(range(len(SIZES)), SIZES)
        sizes.set(title=f"{len(SEEDS)} 个种子，训练步数相同", xlabel="训练题", ylabel="答对（%）", ylim=(0, 104))
        sizes.legend(loc="lower right")
        spread.hist(100 * exams, bins=np.arange(-1.25, 103.75, 2.5), color=COLORS[0], alpha=0.8)
        for edge in unlucky:
            spread.axvline(100 * edge, color=COLORS[1], linestyle="--")
        spread.set(title=f"同一个模型，{TIMES} 份 {SHORT} 题的卷子", xlabel="答对（%）", ylabel="份",
                   xlim=(100 * exams.min() - 4, 100 * exams.max() + 4))


def main(argv=None):
    options = options_of(argv, "measure", "第七章：分数能信到什么程度", 120)
    exam = questions(TASKS, EXAM, held=True)
    learned, held, middle = {size: [] for size in SIZES}, {size: [] for size in SIZES}, None
    with tempfile.TemporaryDirectory() as folder:
        vocab = vocab_of(Path(folder), dialogues(questions(TASKS, 5000) + exam))
        for size in SIZES:
            for seed in SEEDS:
                pairs = questions(TASKS, size, seed)
                model, _, _ = train(Path(folder), "sft", dialogues(pairs), options.steps, name=f"{size}_{seed}",
                                    seed=seed, use_moe=False, use_fc2=False)
                right = marks(model, vocab, exam)
                learned[size].append(marks(model, vocab, pairs[:200]).mean())
                held[size].append(right.mean())
                if (size, seed) == (300, 0):
                    middle = right
    exams = short_exams(middle)
    unlucky = np.quantile(exams, (0.025, 0.975))
    draw(options, learned, held, exams, unlucky)
    numbers = {}
    for size in SIZES:
        numbers[f"{size} 题：训练过的（%）"] = round(100 * np.mean(learned[size]), 1)
        numbers[f"{size} 题：留出的（%）"] = round(100 * np.mean(held[size]), 1)
        numbers[f"{size} 题：三个种子相差"] = round(100 * (max(held[size]) - min(held[size])), 1)
    told_numbers(options, {**numbers, "300 题种子 0：400 题的分数（%）": round(100 * middle.mean(), 1),
                                  "40 题的卷子，低的（%）": round(100 * unlucky[0], 1),
                                  "40 题的卷子，高的（%）": round(100 * unlucky[1], 1)})


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

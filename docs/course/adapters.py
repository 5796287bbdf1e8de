"""Chapter 6: what an adapter learns and the base forgets, what a preference moves, and what a reward gets."""

import tempfile
from pathlib import Path

import numpy as np
from course import (COLORS, GREY, dialogues, drawing, options_of, questions, replies, score, texts, told_numbers, train,
                    vocab_of)

from chat_agent.load import load
from tools.pictures.style import smoothed

OLD, NEW = ["measure", "fact"], ["antonym"]
RANKS = (1, 4, 16)
TALKS = "def score(conversation, reply, row):\n    return len(reply) / 30\n"        # the longer, the better
SHAPE = dict(use_moe=False, use_fc2=False)
SLOW = dict(optimizer="adamw", init_lr=4e-3, warmup_steps=10)


def adapted(folder, base, steps):
    """{name: path of a model} that learned NEW on top of `base`, in the same number of steps."""
    rows, made = dialogues(questions(NEW, 20 * steps)), {}
    for rank in RANKS:
        made[f"LoRA 秩 {rank}"] = train(folder, "lora", rows, steps, name=f"rank{rank}", rank=rank, forget_penalty=0.0,
                                       lora_targets=["attention", "shared", "heads"],
                                       **{**SLOW, "pretraining_model_path": base})[2]
    made["整个模型"] = train(folder, "sft", rows, steps, name="whole", **{"pretraining_model_path": base, **SHAPE})[2]
    return made


def preferred(folder, base, pairs, steps):
    """The log of a preference alignment: answers with a full stop are liked better."""
    rows = [{"prompt": question, "chosen": f"{answer}。", "rejected": answer} for question, answer in pairs]
    return train(folder, "dpo", rows, steps, name="dpo", **{**SLOW, "init_lr": 5e-5, "pretraining_model_path": base})[1]


def rewarded(folder, base, pairs, steps):
    """-> the model and the log of a reinforcement by the length of the reply, whatever it says."""
    judge = folder / "talks.py"
    judge.write_text(TALKS, encoding="utf-8")
    keys = dict(reward=f"{judge}:score", group_size=8, max_new_tokens=40, scheduler="constant", init_lr=3e-4,
                pretraining_model_path=base)
    rows = [{"prompt": question, "answer": answer} for question, answer in pairs]
    _, log, path = train(folder, "rl", rows, steps, name="rl", **{**SLOW, **keys})
    return path, log


def draw(options, scores, dpo, rl):
    with drawing(options, 3, width=12.5, width_ratios=[1.3, 1, 1]) as (bars, likes, lengths):
        places = np.arange(len(scores))
        for shift, number, color, name in ((-0.2, 0, GREY, "原来会的"), (0.2, 1, COLORS[0], "新学的")):
            heights = [100 * one[number] for one in scores.values()]
            bars.bar(places + shift, heights, 0.38, color=color, label=name)
            for place, height in zip(places, heights):
                bars.text(place + shift, height + 1.5, f"{height:.0f}", ha="center", fontsize=8)
        bars.set_xticks(places, [name.replace(" ", "\n", 1) for name in scores], fontsize=9)
        bars.set(title="学会新的，忘掉多少（答对 %）", ylim=(0, 125))
        bars.legend(loc="upper center", ncols=2)
        for color, name, field in ((COLORS[2], "选中的", "reward_chosen"), (COLORS[4], "落选的", "reward_rejected")):
            likes.plot(dpo.step, smoothed(dpo.get(field), 0.7), color=color, label=name)
        likes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        likes.set(title="偏好：比起点更常说（正）还是更少", xlabel="步")
        likes.legend(loc="best")
        lengths.plot(rl.step, rl.get("length"), color=COLORS[3])
        lengths.set(title="奖励“长”：回答的词元数", xlabel="步", ylim=(0, None))


def main(argv=None):
    options = options_of(argv, "adapters", "第六章：适配器、偏好、奖励各改变什么", 200)
    talk, short = dialogues(questions(OLD, 20 * options.steps)), max(2, options.steps // 3)
    old, new = questions(OLD, 100, held=True), questions(NEW, 60, held=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        vocab = vocab_of(folder, talk + dialogues(questions(NEW, 3000)) + texts(OLD + NEW, 3000))
        read = train(folder, "pre", texts(OLD + NEW, 20 * options.steps), options.steps, name="read", **SHAPE)[2]
        base = str(train(folder, "sft", talk, options.steps, name="base", pretraining_model_path=str(read), **SHAPE)[2])
        made = {"底座": base, **adapted(folder, base, max(2, options.steps // 2))}
        scores = {name: [score(load(path)[0], vocab, pairs) for pairs in (old, new)] for name, path in made.items()}
        dpo = preferred(folder, base, questions(OLD, 2000, seed=2), short)
        spoiled, rl = rewarded(folder, base, questions(OLD, 1000, seed=3), short)
        model = load(spoiled)[0]
        after, said = score(model, vocab, old), replies(model, vocab, [old[0][0]])[0]
    print(f"奖励“长”以后：{old[0][0]} -> {said}")
    draw(options, scores, dpo, rl)
    numbers = {}
    for name, (kept, learned) in scores.items():
        numbers |= {f"{name}：原来会的（%）": round(100 * kept, 1), f"{name}：新学的（%）": round(100 * learned, 1)}
    last = {name: round(float(dpo.get(f"reward_{name}")[-10:].mean()), 2) for name in ("chosen", "rejected")}
    told_numbers(options, {
        **numbers, "偏好：选中的": last["chosen"], "偏好：落选的": last["rejected"],
        "奖励“长”：开始的词元数": round(float(rl.get("length")[0]), 1),
        "奖励“长”：最后的词元数": round(float(rl.get("length")[-5:].mean()), 1),
        "奖励“长”：最后答对（%）": round(100 * after, 1)})


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

"""Chapter 4: what the loss is before anything is learned, how both heads come down, and what a step divides by."""

import math
import tempfile
from pathlib import Path

from course import (COLORS, GREY, TASKS, dialogues, drawing, options_of, questions, stage_of, texts, told_numbers,
                    torch, train, vocab_of)

from train_agent.trainers.dataset import Position
from train_agent.trainers.losses import next_tokens_loss

RATES = (1e-4, 4e-3, 0.3)
MICRO = 4               # micro-batches that make one step
STEPS = 20              # whose gradients are compared: one alone may have micro-batches of one size


def gradient(model, batches, totals_of):
    """The gradient of all weights as one vector, after the backward passes of these batches."""
    model.zero_grad()
    for batch in batches:
        loss, _ = next_tokens_loss(model, batch, totals_of(batch))
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def apart(one, other):
    return float((one - other).norm() / other.norm())


def three_gradients(folder, rows):
    """-> how far from the gradient of one big batch are, in the mean of STEPS steps: four small ones that share its
    count; the mean of four means; and how many targets the small ones have in the most uneven step."""
    keys = dict(use_moe=False, pair_start=0, max_len=64)
    big = stage_of(folder, "sft", rows, 1, batch_size=8, **keys)
    small, model, steps = stage_of(folder, "sft", rows, 1, batch_size=8 // MICRO, **keys).train, big.model, []
    for step in range(STEPS):
        parts = [small.batch(Position(batch=MICRO * step + number)) for number in range(MICRO)]
        counts = {key: sum(getattr(part, key) for part in parts) for key in ("targets_1", "targets_2", "tokens")}
        whole = gradient(model, [big.train.batch(Position(batch=step))], lambda _: counts)
        shared = gradient(model, parts, lambda _: counts)
        own = gradient(model, parts, lambda part: {key: MICRO * getattr(part, key) for key in counts})
        steps.append((apart(shared, whole), apart(own, whole), [part.targets_1 for part in parts]))
    uneven = max((sizes for _, _, sizes in steps), key=lambda sizes: max(sizes) / min(sizes))
    return sum(step[0] for step in steps) / STEPS, sum(step[1] for step in steps) / STEPS, uneven


def draw(options, logs, chance, distances):
    with drawing(options, 3, width_ratios=[1.1, 1.1, 0.9]) as (heads, rates, bars):
        log = logs[RATES[1]]
        heads.axhline(chance, color=GREY, linestyle="--", linewidth=1)
        heads.text(len(log), chance + 0.1, "随机猜测：ln V", color=GREY, ha="right", fontsize=9)
        for color, name, field in zip(COLORS, ("头 1：下一个词元", "头 2：再下一个词元"), ("ce_1", "ce_2")):
            heads.plot(log.step, log.get(field), color=color, linewidth=1.2, label=name)
        heads.set(title="两个输出头的损失", xlabel="步", ylim=(0, chance + 1))
        heads.legend(loc="lower left")
        for color, (rate, log) in zip(COLORS[2:], logs.items()):
            rates.plot(log.step, log.get("ce_1"), color=color, linewidth=1.2, label=f"{rate:g}")
        rates.set(title="同一个模型，三种学习率", xlabel="步", ylabel="头 1 的损失", ylim=(0, chance + 1))
        rates.legend(loc="lower left")
        bars.bar(["按整步的\n个数平均", "四份的平均\n再平均"], [100 * one for one in distances], color=COLORS[:2], width=0.5)
        for place, one in enumerate(distances):
            bars.text(place, 130 * one, f"{100 * one:.2g} %", ha="center", fontsize=10)
        bars.set(title="四小批和一大批的梯度差多少", yscale="log", ylim=(1e-6, 1e3), ylabel="%")


def main(argv=None):
    options = options_of(argv, "loss", "第四章：损失从哪里开始，一步除以几", 300)
    rows, logs = texts(list(TASKS), 20 * options.steps + 200), {}
    talk = dialogues(questions(["shopping", "antonym", "ends"], 600))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        vocab_of(folder, texts(list(TASKS), 6000) + talk)
        for number, rate in enumerate(RATES):
            model, logs[rate], _ = train(folder, "pre", rows, options.steps, name=f"run{number}", use_moe=False,
                                         pair_start=0, init_lr=rate)
        *distances, sizes = three_gradients(folder, talk)
    chance = math.log(model.config.vocab_size)
    draw(options, logs, chance, distances)
    log = logs[RATES[1]]
    last = {field: round(float(log.get(field)[-20:].mean()), 2) for field in ("ce_1", "ce_2")}
    told_numbers(options, {
        "词表项数 V": model.config.vocab_size, "ln V": round(chance, 2), "头 1 第 1 步": round(float(log.get("ce_1")[0]), 2),
        "头 2 第 1 步": round(float(log.get("ce_2")[0]), 2), "头 1 最后": last["ce_1"], "头 2 最后": last["ce_2"],
        **{f"学习率 {rate:g}：头 1 最后": round(float(one.get("ce_1")[-20:].mean()), 2) for rate, one in logs.items()},
        "按整步的个数平均，差（%）": float(f"{100 * distances[0]:.1g}"), "平均再平均，差（%）": round(100 * distances[1], 1),
        "四份里目标最少": min(sizes), "四份里目标最多": max(sizes)})


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

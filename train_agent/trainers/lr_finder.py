"""Which learning rate? Raise it step by step until the loss explodes, and look where the loss fell fastest (Smith 2017,
arXiv:1506.01186)."""

import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.pictures.others import draw_lr_curve
from tools.plot import smoothed
from train_agent.trainers import parallel
from train_agent.trainers.trying.dry_loop import Rehearsal

LOW, HIGH, STEPS = 1e-7, 1.0, 100
EXPLODED = 4.0          # times the first loss


class Sweep(Rehearsal):
    """Steps whose rate is low * (high / low)^(step / steps); all groups keep their ratio."""

    def __init__(self, stage, low=LOW, high=HIGH, steps=STEPS):
        super().__init__(stage)
        self.low, self.high, self.steps, self.broken = low, high, steps, False

    def rate_factor(self, chunk):
        return self.low * (self.high / self.low) ** (self.step / self.steps) / self.options["init_lr"]

    def may_step(self, group):
        loss, norm = math.isfinite(self.metrics["loss"]), math.isfinite(self.metrics["grad_norm"])
        # fp16 begins too large and comes down
        rescaling = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        self.broken = not loss or not norm and not rescaling
        return loss and norm


def find_learning_rate(stage, low=LOW, high=HIGH, steps=STEPS, progress=False):
    """-> [{"lr", "loss"}] of the steps taken, suggested init_lr or None. Stops where the loss passes 4 x the first one.

    The loss beside a rate is the one before the step with that rate. Model, data and random states stay as they are.
    """
    history = []
    with Sweep(stage, low, high, steps) as loop:
        for group in tqdm(islice(loop.groups(), steps), total=steps, desc="寻找学习率", delay=2, leave=False,
                          disable=not progress):
            loop.optimize(group, 1)
            if loop.broken:
                break
            history.append({"lr": loop.metrics["lr"], "loss": loop.metrics["loss"]})
            if history[-1]["loss"] > EXPLODED * history[0]["loss"]:
                break
    return history, suggested(history)


def suggested(history):
    """The rate at which the smoothed loss falls fastest, before its minimum; None where it never falls."""
    if len(history) < 10:
        return None
    rates = np.log([point["lr"] for point in history])
    losses = smoothed(np.array([point["loss"] for point in history]), 0.8)
    best = int(losses.argmin())
    slopes = np.gradient(losses, rates)[:best + 1]
    return history[int(slopes.argmin())]["lr"] if best and slopes.min() < 0 else None


def find_lr(stage):
    """`--find_lr`: sweep, draw, tell. -> {"history", "suggestion", "picture"}; the picture lies in log_dir."""
    history, suggestion = find_learning_rate(stage, progress=parallel.is_main())
    picture = Path(stage.options["log_dir"], f"find_lr_{stage.name}.png")
    if parallel.is_main():
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_lr_curve(history, suggestion, picture)
        last = history[-1] if history else {"lr": math.nan, "loss": math.nan}
        print(f"学习率从 {LOW:g} 试到 {last['lr']:.3g}（{len(history)} 步，最后的损失 {last['loss']:.3f}）。曲线：{picture}")
        if suggestion is None:
            print("损失没有下降，给不出建议：请检查数据，或先试 --overfit_one_batch 100。", file=sys.stderr)
        else:
            print(f"建议 --{'memory_lr' if stage.name == 'memory' else 'init_lr'} {suggestion:.2g}（损失下降最快处）。模型和数据都没有改变。")
    return {"history": history, "suggestion": suggestion, "picture": str(picture)}

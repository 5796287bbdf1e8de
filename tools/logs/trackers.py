"""Experiment trackers as an option: TensorBoard, Weights & Biases, SwanLab. Nobody needs them, and none can stop a
training.

A tracker is opened by name and gets plain numbers; a package that is not installed, or does not start, is one warning.
"""
import math
import os
import sys
from pathlib import Path

PROJECT = "tinyseek"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}


class NoTracker:
    """`tracker: none`, and what is left of one that failed."""

    def log(self, step, numbers):
        pass

    def close(self):
        pass


class TensorBoard:
    """Event files in log_dir/tensorboard/<run>; look at them with `tensorboard --logdir logs/tensorboard`."""

    def __init__(self, log_dir, run_id, config, step):
        from torch.utils.tensorboard import SummaryWriter
        # What a killed run has written beyond the checkpoint is hidden by the step it goes on from.
        self.writer = SummaryWriter(str(Path(log_dir, "tensorboard", run_id)), purge_step=step + 1 if step else None)
        if not step:
            self.writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()))

    def log(self, step, numbers):
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self):
        self.writer.close()


class WandB:
    """W&B. WANDB_MODE, WANDB_PROJECT and its other variables count; offline runs lie in log_dir/wandb."""

    def __init__(self, log_dir, run_id, config, step):
        import wandb
        self.run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), id=run_id, name=run_id,
                              dir=str(log_dir), config=config,
                              resume="allow")

    def log(self, step, numbers):
        self.run.log(numbers, step=step)

    def close(self):
        self.run.finish()


class SwanLab:
    """SwanLab. SWANLAB_MODE (online, local, offline) counts; its files lie in log_dir/swanlog."""

    def __init__(self, log_dir, run_id, config, step):
        import swanlab
        self.run = swanlab.init(project=PROJECT, experiment_name=run_id, config=config,
                                logdir=str(Path(log_dir, "swanlog")))
        self.finish = swanlab.finish

    def log(self, step, numbers):
        self.run.log(numbers, step=step)

    def close(self):
        self.finish()


class Guarded:
    """A tracker whose first failure is a warning and its end; the training goes on."""

    def __init__(self, kind, open_it):
        self.kind, self.tracker = kind, NoTracker()
        self._try(lambda: setattr(self, "tracker", open_it()))

    def _try(self, work):
        try:
            work()
        except ImportError:
            self._give_up(
                f"没有安装 {PACKAGES[self.kind]}，不记录到 {self.kind}。需要的话：python -m pip install {PACKAGES[self.kind]}")
        # A network, a login, a full disk: whatever it is, it is not the training's
        except Exception as error:
            self._give_up(
                f"{self.kind} 不能用了（{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}），训练继续，"
                f"只是不再记录到它。")

    def _give_up(self, text):
        self.tracker = NoTracker()
        print(f"警告：{text}", file=sys.stderr)

    def log(self, step, numbers):
        self._try(lambda: self.tracker.log(step, numbers))

    def close(self):
        self._try(self.tracker.close)


FIELDS = ("lexp", "entropy", "grad_norm", "tok_s", "accuracy", "regret", "margin", "reward_chosen", "reward_rejected")
KINDS = {"tensorboard": TensorBoard, "wandb": WandB, "swanlab": SwanLab}


def open_tracker(kind, log_dir, run_id, config, step=0):
    """The tracker called `kind` ("none", or a key of KINDS): .log(step, {name: number}), .close().

    run_id: the run in logs/; a resumed run goes on under it after `step`. config: flat, for the tracker's own pages.
    """
    if kind == "none":
        return NoTracker()
    Path(log_dir).mkdir(parents=True, exist_ok=True)
    return Guarded(kind, lambda: KINDS[kind](log_dir, run_id, config, step))


def numbers_of(fields, rates=()):
    """Fields of a log line -> {name: number}. rates: the learning rate of each parameter group, where there are
    several.

    loss is the cross-entropies alone, aux_loss what routing adds, total_loss their sum: what is optimised.
    """
    heads = {f"ce_{h}": fields[f"ce_{h}"] for h in "12" if f"ce_{h}" in fields}
    loss = sum(heads.values()) if heads else fields["loss"]
    numbers = {"train/loss": loss, "train/aux_loss": fields["loss"] - loss, "train/total_loss": fields["loss"]}
    numbers |= {f"train/ppx_{name[-1]}": math.exp(min(value, 80.0)) for name, value in heads.items()}
    numbers |= {f"train/{k}": fields[k] for k in FIELDS if k in fields}
    numbers |= {f"lr/group_{i}": rate for i, rate in enumerate(rates)} if len(rates) > 1 else {"lr": fields["lr"]}
    for layer, shares in enumerate(fields.get("expert_load", ())):
        numbers |= {f"expert_load/layer_{layer}/expert_{i}": share for i, share in enumerate(shares)}
    return numbers

"""Learning rates as pure functions of the step: nothing to store, nothing to lose at a resume.

A schedule gives a factor; the loop multiplies it with each parameter group's own rate, so the groups keep their ratio.
"""

import math

from torch.optim.lr_scheduler import LambdaLR


def cosine(step, warmup, total, floor=0.1):
    """Linear rise over `warmup` steps, then half a cosine from 1 down to `floor` at `total`. step 0 with a warm-up is
    0."""
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(step, warmup, total):
    """Linear rise, then linear to 0 at `total`."""
    if step < warmup:
        return step / warmup
    return max(0.0, 1 - (step - warmup) / max(1, total - warmup))


def constant(step, warmup):
    return min(1.0, step / warmup) if warmup else 1.0


def exponential(decays, decay, init_lr, min_lr):
    """max(init_lr * decay^decays, min_lr) as a share of init_lr: what `lr = max(lr * decay, min_lr)` after each step
    gives."""
    return max(init_lr * decay ** decays, min_lr) / init_lr


def is_held(options, chunk):
    """True while TinySeek's chunk-wise warm-up holds the rate: chunks are numbered from 1."""
    return chunk <= options.keep_temp_index


AUTO = {"eval_steps": (10, 500), "logging_steps": (50, 10)}     # points of a run, and steps between two of them at most


def every(cadence, steps, total_steps):
    """Steps from one `cadence` ("eval_steps" ...) to the next in a run of so many; steps: what its key says, None =
    never."""
    if steps != "auto":
        return steps
    points, most = AUTO[cadence]
    return min(most, max(1, -(-total_steps // points)))


def rate_factor(options, step, total_steps, chunk=1, decays=0):
    """The factor for the optimizer step number `step` (0-based) of a stage's options.

    chunk: number of the data chunk, from 1 and on through the epochs; decays: how many steps the exponential rule has
    decayed so far.
    """
    name, warmup = options.scheduler, options.warmup_steps
    ahead = int(warmup > 0)                                  # a first step at 0 would be none, and so would a last one
    if name == "cosine":
        floor = options.min_lr_ratio
        return cosine(step + ahead, warmup, total_steps + ahead * (floor == 0), floor)
    if name == "linear":
        return linear(step + ahead, warmup, total_steps + ahead)
    if name == "constant":
        return constant(step + 1, warmup)
    if name != "exponential":
        raise ValueError(f"unknown scheduler {name!r}")
    if is_held(options, chunk):
        return min(1.0, chunk / max(1, options.warmup_index))
    if step < warmup:
        return (step + 1) / warmup
    return exponential(decays, options.decay, options.init_lr, options.min_lr)


def get_cosine_schedule_with_warmup(optimizer, warmup_steps, total_steps, min_lr_ratio=0.1):
    """The cosine rule as a torch scheduler, for people with a loop of their own."""
    return LambdaLR(optimizer, lambda step: cosine(step, warmup_steps, total_steps, min_lr_ratio))

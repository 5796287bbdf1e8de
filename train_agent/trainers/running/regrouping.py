"""Going on with steps of another size: another batch size, accumulation or number of processes.

The order of the rows does not depend on any of them, so the place in the data stays. Steps do: those to come are
counted anew.
"""

import math

from train_agent.trainers import parallel
from train_agent.trainers.dataset import Position


def step_size(options):
    """[rows of a micro-batch, rows of a step], as a checkpoint keeps them."""
    return [options["batch_size"], options["batch_size"] * options["accumulation_steps"] * parallel.world()]


def regrouped(position, had, has):
    """The same place where micro-batches have `has` rows instead of `had`; the rows of a half one come once more."""
    return Position(position.epoch, position.chunk, position.batch * had // has)


def shift(step, before, had_total, total, warmup):
    """From which step the schedule has to count so that its rate goes on where it was and ends with the run's `total`
    steps.

    before, had_total: what it counted from so far, and to. A schedule that still warms up, or has ended, stays as is.
    """
    done = (step - before - warmup) / max(1e-9, had_total - before - warmup)      # of what follows the warm-up
    return (step - done * total) / (1 - done) - warmup if 0 < done < 1 else before


def more_steps(data, position, step, planned):
    """By how many steps the whole run is longer (negative: shorter) than `planned`, when `step` steps brought it to
    `position`."""
    batches = data.batches_in(position.epoch, position.chunk) if position.chunk < data.chunks else 1
    done = (position.epoch + (position.chunk + position.batch / max(1, batches)) / data.chunks) / data.epochs
    return step + math.ceil(planned * max(0.0, 1 - done) - 1e-9) - planned

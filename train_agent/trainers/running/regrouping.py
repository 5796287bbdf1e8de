"""Going on with steps of another size: another batch size, accumulation or number of processes.

The order of the rows does not depend on any of them, so the place in the data stays. Steps do: those to come are counted anew.
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


def more_steps(data, position, step, planned):
    """By how many steps the whole run is longer (negative: shorter) than `planned`, when `step` steps brought it to `position`."""
    batches = data.batches_in(position.epoch, position.chunk) if position.chunk < data.chunks else 1
    done = (position.epoch + (position.chunk + position.batch / max(1, batches)) / data.chunks) / data.epochs
    return step + math.ceil(planned * max(0.0, 1 - done) - 1e-9) - planned

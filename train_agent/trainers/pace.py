"""How long a step takes here: a few real steps on a copy of the model, which is then forgotten."""

import copy
import time
from dataclasses import replace

from tools.train_log import TrainLog
from train_agent.trainers import recovery
from train_agent.trainers.dataset import Position, loader
from train_agent.trainers.loop import Loop

WARM_UP = 2


def seconds_per_step(stage, seconds=6.0):
    """Median seconds of an optimizer step of `stage`, measured for about `seconds`. Weights and random states stay as they were."""
    before = recovery.random_states()
    loop = Loop(replace(stage, model=copy.deepcopy(stage.model), options={**stage.options, "num_workers": 0}))
    loop.setup()
    loop.choose()
    loop.journal = TrainLog(None, None, stage.name)
    loop.model.train()
    times, start = [], time.perf_counter()
    for group, _, _ in loader(stage.train, Position(), loop.options, loop.device):
        since = time.perf_counter()
        loop.optimize(group, 1)
        times.append(time.perf_counter() - since)
        if len(times) > WARM_UP and time.perf_counter() - start > seconds:
            break
    recovery.restore_random_states(before)
    settled = sorted(times[WARM_UP:] or times)
    return settled[len(settled) // 2]

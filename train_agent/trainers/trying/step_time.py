"""How long a step takes here and what it keeps: a few real steps on a copy of the model, which is then forgotten."""

import gc
import statistics
import time

import torch

from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from train_agent.trainers.running.evaluation import EMPTY
from train_agent.trainers.hardware.ram import SavedBytes
from train_agent.trainers.trying.dry_loop import Rehearsal

WARM_UP, LEAST, TOGETHER = 1, 2, 4      # steps not counted, steps counted at least, micro-batches measured at a time
HELD_BATCHES = 3


def measure(stage, seconds, share=1.0):
    """Steps are taken for about `seconds`, and for at most that share of the run's steps. Weights and random states
    stay as they were.

    -> {"metrics" of the first step, "step" and "forward" (one whole evaluation) in seconds, "saved" bytes of
    activations, "peak" bytes of the copy on CUDA, "total_steps", "device", "precision"}
    """
    before = allocated(machine.choose_device(stage.options["device"]))      # by the model that is to be trained
    with Rehearsal(stage) as loop:
        cuda = loop.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(loop.device)
        counted = SavedBytes(loop.model)
        with counted:
            loop.optimize(next(loop.groups())[:1], 1)
        found = {"metrics": dict(loop.metrics), "step": step_seconds(loop, seconds, share),
                 "forward": held_seconds(loop), "saved": counted.total,
                 "total_steps": loop.total_steps, "device": loop.device, "precision": loop.precision,
                 "peak": torch.cuda.max_memory_allocated(loop.device) - before if cuda else None}
    del loop
    gc.collect()                                                        # the copy is gone before the run begins
    torch.cuda.empty_cache() if cuda else None
    return found


def allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def step_seconds(loop, seconds, share=1.0):
    """Mean seconds of an optimizer step: a mean, because steps that run slow are part of the run."""
    times, start = [], time.perf_counter()
    since = start
    for group in loop.groups():
        part = group[:TOGETHER]
        loop.optimize(part, 1)
        now = time.perf_counter()
        times.append((now - since) * len(group) / len(part))
        enough = now - start > seconds or len(times) > share * loop.total_steps
        if len(times) >= LEAST + WARM_UP and (parallel.world() > 1 or enough):              # ranks take the same steps
            return statistics.mean(times[WARM_UP:])
        since = time.perf_counter()


@torch.no_grad()
def held_seconds(loop):
    """Seconds of one whole evaluation over all held-out data, from a few of its batches."""
    total = 0.0
    loop.model.eval()
    for data in loop.stage.held.values():
        places = data.places()
        start, tried = time.perf_counter(), places[:HELD_BATCHES]
        for place in tried:
            with machine.autocast(loop.device, loop.precision):
                _, sums = loop.stage.loss(loop.wrapped, data.batch(place).to(loop.device), EMPTY)
            {k: float(v) for k, v in sums.items() if v.numel() == 1}      # waits for the device
        total += (time.perf_counter() - start) * len(places) / max(1, len(tried)) / parallel.world()
    return total

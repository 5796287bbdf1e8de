"""Held-out loss: every target counted once, weighted by tokens, dropout off, weights untouched."""

import math

import torch
from tqdm import tqdm

from train_agent.trainers import parallel
from train_agent.trainers.hardware import sharding
from train_agent.trainers.losses import PER_SAMPLE, next_tokens_loss
from train_agent.trainers.hardware.machine import autocast

EMPTY = {"targets_1": 1, "targets_2": 1, "tokens": 1}    # sums are wanted, so nothing is divided


def _share(data, places):
    """This process's batches; the same number on all, as a sharded model's forward pass needs all of them."""
    mine = places[parallel.rank()::parallel.world()]
    yield from map(data.batch, mine)
    if len(mine) < -(-len(places) // parallel.world()):
        yield data.batch(places[0]).blank()


@torch.no_grad()
def evaluate(model, data, device, precision, loss=next_tokens_loss):
    """-> {"loss", "ce_1", "ce_2"} in nats per target over all of `data` (a PackedData without shuffling), and means per
    sample."""
    was_training = model.training
    model.eval()
    totals = {"ce_1": 0.0, "ce_2": 0.0, "targets_1": 0.0, "targets_2": 0.0}
    places = data.places()
    for batch in tqdm(_share(data, places), total=-(-len(places) // parallel.world()), desc="留出数据打分", delay=2,
                      leave=False, disable=not parallel.is_main()):
        batch = batch.to(device)
        with autocast(device, precision):
            _, sums = loss(model, batch, EMPTY)
        for i in (1, 2):
            if f"ce_{i}" in sums:
                totals[f"ce_{i}"] += float(sums[f"ce_{i}"])
                totals[f"targets_{i}"] += getattr(batch, f"targets_{i}")
        for name in PER_SAMPLE:
            if name in sums:
                totals[name] = totals.get(name, 0.0) + float(sums[name])
    model.train(was_training)
    sharding.settle(model)
    totals = {k: float(v) for k, v in parallel.summed(totals, device).items()}
    result = {f"ce_{i}": totals[f"ce_{i}"] / totals[f"targets_{i}"] for i in (1, 2) if totals[f"targets_{i}"]}
    result = result or {"ce_1": math.nan}                    # no target at all: nothing to improve on
    samples = {k: totals[k] / totals["targets_1"] for k in PER_SAMPLE if k in totals}
    return {"loss": sum(result.values()), **result, **samples}


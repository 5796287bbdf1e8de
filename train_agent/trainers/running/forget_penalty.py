"""Against forgetting, without a single general row to train on: how much an adapter may change what the base does with
general data.

Before training, the base reads some general rows, and of every projection's inputs x the second moments C = mean(x xᵀ)
are kept. The penalty is the mean square of what an adapter's D adds to the outputs of W on such inputs, as a share of
W's own outputs:
tr(D C Dᵀ) / tr(W C Wᵀ), summed over the projections. It asks nothing of directions that general data does not use.
"""

from functools import partial

import torch
from tqdm import tqdm

from model.layers import without_autocast
from model.lora import LoraLinear
from train_agent.trainers import parallel
from train_agent.trainers.hardware.sharding import whole
from train_agent.trainers.losses import next_tokens_loss


def adapted(model):
    """{name: LoraLinear that learns} of a model, however it is wrapped; the experts' stacks and routers are not among
    them."""
    named = {n.removeprefix("module.").removeprefix("_orig_mod."): m for n, m in model.named_modules()}
    return {n: m for n, m in named.items() if isinstance(m, LoraLinear) and m.lora.a.requires_grad}


@torch.no_grad()
def general_moments(model, data):
    """{name of an adapted projection: C / tr(W C Wᵀ), (in, in) float32} on `data`, a PackedData of general rows."""
    places, sums, counts, valid = adapted(model), {}, {}, None

    def see(name, x):
        x = x.reshape(len(valid), -1)[valid].float()                          # padding is nobody's data
        sums[name], counts[name] = sums.get(name, 0) + x.t() @ x, counts.get(name, 0) + len(x)

    was_training = model.training
    model.eval()
    for name, module in places.items():
        module.lora.watch = partial(see, name)
    try:
        for place in tqdm(data.places(), desc="防遗忘：读通用数据", delay=2, leave=False, disable=not parallel.is_main()):
            batch = data.batch(place)
            valid = batch.valid.flatten()
            hidden, *_ = model.encode(batch.ids, batch.positions, batch.layout)
            for name in {"fc1", "fc2"} & places.keys():                   # the loss multiplies by their weights itself
                see(name, hidden)
    finally:
        model.train(was_training)
        for module in places.values():
            module.lora.watch = None
    return {n: shared_out(sums[n] / counts[n], places[n].base.weight.float()) for n in sums}


def shared_out(moments, weight):
    """C as a share of what the base's own weight makes of it."""
    return moments / ((weight @ moments) * weight).sum().clamp_min(1e-30)


def drift(model, moments):
    """The penalty, a scalar with a gradient in float32: 0 for a new adapter, 1 where one projection's outputs change by
    their own size."""
    places, total = adapted(model), 0.0
    with without_autocast(next(model.parameters())):
        for name, c in moments.items():
            lora = places[name].lora
            if c.device != lora.a.device:
                c = moments[name] = c.to(lora.a.device)                   # once, not in every step
            a, b = whole(lora.a).float(), whole(lora.b).float() * lora.factor
            # tr(B A C Aᵀ Bᵀ), nothing larger than rank x in
            total = total + ((b.t() @ b) @ (a @ c) * a).sum()
    return total


def keeping_loss(moments, weight, model, batch, totals):
    """The tokens' losses and `weight` times the drift, spread over the step's micro-batches by their tokens."""
    loss, sums = next_tokens_loss(model, batch, totals)
    extra = weight * drift(model, moments)
    sums["drift"] = extra.detach() * batch.tokens
    return loss + extra * (batch.tokens / max(1, totals["tokens"])), sums

"""A memory adapter, alone or with LoRA, on a base that is frozen or learns slowly; every part has a learning rate of
its own."""

from functools import partial

import torch

from train_agent.trainers import lora_tuning
from train_agent.trainers.build_stage import adapter_stage
from train_agent.trainers.losses import (auxiliary_loss, compute_router_auxiliary_loss, load_balance_loss, read,
                                         share_of_step,
                                         z_loss)
from train_agent.trainers.run_stage import start


def describe(options, vocab=None):
    """The keywords of model.memory.apply_memory for these options, as they are kept in the file."""
    lora = None
    if options["rank"]:
        lora = lora_tuning.describe(options)
        del lora["type"]
    return {"type": "memory", "tokens": options["memory_tokens"], "chapters": options["memory_chapters"],
            "topk": options["memory_topk"],
            "layers": options["memory_layers"], "lora": lora, "train_base": options["base_model_lr"] is not None}


def rate_of(options, name):
    """The learning rate of one parameter, by the component that it belongs to."""
    if ".lora." in name or "_lora." in name:
        return options["lora_lr"]
    return options["memory_lr"] if ".memories." in name else options["base_model_lr"]


def router_losses(routing, valid):
    """ChapterRouting of one layer, valid (N,) bool -> its three losses by the names of
    compute_router_auxiliary_loss. Padding weighs nothing; no device is asked how much of it there is."""
    share, kept = valid.float(), routing.chapters.shape[1]
    total = share.sum().clamp_min(1)
    chosen = torch.zeros_like(routing.logits, dtype=torch.float32).scatter_(1, routing.chapters, 1.0)        # (N, C)
    mean = (routing.logits.softmax(-1) * share[:, None]).sum(0) / total
    return {"load_balance": load_balance_loss((chosen * share[:, None]).sum(0) / (total * kept), mean),
            "auxiliary": auxiliary_loss(mean), "z_loss": z_loss(routing.logits, share)}


def memory_loss(coefficients, model, batch, totals):
    """The losses of the tokens and, as a token-weighted mean over the step's micro-batches, those of the chapter
    routers."""
    out = read(model, batch)
    loss, sums = share_of_step(out, batch, totals)
    valid = batch.valid.flatten()
    extra = compute_router_auxiliary_loss([router_losses(r, valid) for r in out.chapters], **coefficients)
    sums["router_aux"] = extra.detach() * batch.tokens
    return loss + extra * (batch.tokens / max(1, totals["tokens"])), sums


def build_stage(options):
    # the rate that the log shows and the schedule starts from
    options = {**options, "init_lr": options["memory_lr"]}
    coefficients = {k: options[k] for k in ("load_balance_coef", "auxiliary_coef", "z_loss_coef")}
    return adapter_stage("memory", options, describe, partial(memory_loss, coefficients), partial(rate_of, options))


def memory_train(config, **parameters):
    """Train on the options of the stage `memory`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters})

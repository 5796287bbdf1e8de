"""Parameter groups and optimizers. A run may need two (Muon for matrices, AdamW for the rest), so it always gets a
list."""

import torch

from model.kernels.muon import Muon
from tools.errors import UserError

NOT_FOR_MUON = ("embed", "place", "fc1", "fc2", "router")   # tables and classifiers keep AdamW (Keller Jordan, 2024)


def parameter_groups(named, options):
    """named: (name, parameter, learning rate) triples -> two lists of torch groups: (matrices for Muon, all others).

    Weight decay falls on matrices alone. Without Muon the first list is empty. Nothing trainable is a UserError.
    """
    muon, rest = {}, {}
    for name, parameter, rate in named:
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and options["optimizer"] != "adam"
        decay = options["weight_decay"] if decays else 0.0
        matrices = (2, 3) if options["expert_turns"] else (2,)                 # 3: one for each expert
        wants_muon = (options["optimizer"] == "muon" and parameter.ndim in matrices
                      and not any(k in name for k in NOT_FOR_MUON))
        groups = muon if wants_muon else rest
        group = groups.setdefault((rate, decays),
                                  {"params": [], "lr": rate, "base_lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    if not muon and not rest:
        raise UserError("没有可训练的参数：所有权重都被冻结了。请检查 lora_targets、base_model_lr 等设置。", 2)
    return list(muon.values()), list(rest.values())


def build_optimizers(named, options):
    """The list of torch optimizers for these parameters, fused where torch offers it."""
    muon, rest = parameter_groups(named, options)
    betas, eps = (options["beta1"], options["beta2"]), options["eps"]
    built = []
    if muon:
        built.append(Muon(muon, lr=options["init_lr"], turns=options["expert_turns"] or 1))
    if rest and options["optimizer"] == "sgd":
        built.append(torch.optim.SGD(rest, lr=options["init_lr"], momentum=options["beta1"]))
    elif rest:
        kind = torch.optim.Adam if options["optimizer"] == "adam" else torch.optim.AdamW
        built.append(kind(rest, lr=options["init_lr"], betas=betas, eps=eps, fused=True))
    return built


def settings(group):
    """What the configuration says of a group of torch's: rates, decay, betas; its parameters and the rate of the last
    step are not among it."""
    return {k: v for k, v in group.items() if k not in ("params", "lr")}


def set_rates(optimizers, factor):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

"""Losses of one micro-batch, already scaled for the whole optimizer step, and routing losses by their public names."""

import torch

EXTRAS = ("router_aux", "drift")         # of an adaptation: token-weighted means, part of the loss
PER_SAMPLE = ("accuracy", "regret", "margin", "reward_chosen", "reward_rejected")    # sums over samples, counted as targets_1


def next_tokens_loss(model, batch, totals):
    """CE(head 1) + CE(head 2) + alpha * Lexp of one micro-batch's share of the step.

    totals: {"targets_1", "targets_2", "tokens"} over all micro-batches and ranks of the step, so that summing the shares gives
    exactly: each head's sum over its own count, plus a token-weighted mean of the routing loss.
    Returns the scalar to call backward on and the detached sums to log.
    """
    return share_of_step(read(model, batch), batch, totals)


def read(model, batch):
    """The model's output for a packed batch, losses of both heads included."""
    return model(batch.ids, labels_1=batch.labels_1, labels_2=batch.labels_2, positions=batch.positions,
                 layout=batch.layout, valid=batch.valid, left_out=batch.left_out)


def share_of_step(out, batch, totals):
    """What `next_tokens_loss` returns, from the model's output."""
    counts = (totals["targets_1"], totals["targets_2"])
    loss = sum(total / max(1, count) for total, count in zip(out.loss_sums, counts))
    sums = {f"ce_{i + 1}": total.detach() for i, total in enumerate(out.loss_sums)}
    if out.aux_loss is not None:
        loss = loss + out.aux_loss * (batch.tokens / max(1, totals["tokens"]))
        sums["lexp"] = sum(r.loss.detach() for r in out.routings) * batch.tokens
        sums["aux"] = out.aux_loss.detach() * batch.tokens
        sums["load"] = torch.stack([r.load for r in out.routings])               # (layers, E)
        sums["entropy"] = sum(r.entropy for r in out.routings) / len(out.routings) * batch.tokens
    return loss, sums


def step_metrics(sums, totals):
    """Sums over a step -> the numbers that were optimised: mean cross-entropies, Lexp and the total loss."""
    metrics = {"ce_1": float(sums["ce_1"]) / max(1, totals["targets_1"])}
    if "ce_2" in sums:
        metrics["ce_2"] = float(sums["ce_2"]) / max(1, totals["targets_2"])
    metrics["loss"] = metrics["ce_1"] + metrics.get("ce_2", 0.0)
    if "lexp" in sums:
        metrics["lexp"] = float(sums["lexp"]) / max(1, totals["tokens"])
        metrics["entropy"] = float(sums["entropy"]) / max(1, totals["tokens"])
        metrics["loss"] += float(sums["aux"]) / max(1, totals["tokens"])
    for name in [n for n in EXTRAS if n in sums]:
        metrics[name] = float(sums[name]) / max(1, totals["tokens"])
        metrics["loss"] += metrics[name]
    return metrics | {k: float(sums[k]) / max(1, totals["targets_1"]) for k in PER_SAMPLE if k in sums}


def load_balance_loss(load, mean_probability):
    """C * sum f_i * P_i: 1 when uniform, C / k when k experts take everything. load (C,) shares that sum to 1."""
    return len(load) * (load * mean_probability).sum()


def auxiliary_loss(mean_probability):
    """sum (P_i - 1 / C)^2 over the mean probabilities (C,), which carry a gradient; 0 when uniform."""
    return (mean_probability - 1 / len(mean_probability)).pow(2).sum()


def z_loss(logits):
    """mean(logsumexp(logits)^2) over (..., C)."""
    return torch.logsumexp(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, -1).pow(2).mean()


def compute_router_auxiliary_loss(router_losses, load_balance_coef=0.01, auxiliary_coef=0.0, z_loss_coef=0.001):
    """Mean over the layers that have losses of load_balance, auxiliary and z_loss, each times its coefficient.

    router_losses: one dict per layer, floats or tensors, any of the three keys missing; no layers -> 0.0.
    compute_router_auxiliary_loss([{"load_balance": .01, "z_loss": .001}, {"load_balance": .02, "z_loss": .002}]) == 1.515e-4
    """
    coefficients = {"load_balance": load_balance_coef, "auxiliary": auxiliary_coef, "z_loss": z_loss_coef}
    layers = [layer for layer in router_losses if layer]
    if not layers:
        return 0.0
    return sum(coefficients[name] * value for layer in layers for name, value in layer.items()) / len(layers)

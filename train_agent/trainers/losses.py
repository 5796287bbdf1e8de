"""Losses of one micro-batch, already scaled for the whole optimizer step, and routing losses by their public names."""

import torch

from model.moe import auxiliary_loss, compute_router_auxiliary_loss, load_balance_loss, z_loss  # noqa: F401

EXTRAS = ("router_aux", "drift", "replay")         # of an adaptation: token-weighted means, part of the loss
PER_SAMPLE = ("accuracy", "regret", "margin", "reward_chosen", "reward_rejected")    # sums, counted as targets_1
# Sums that are divided by another sum.
RATES = {"reward": "replies", "success": "replies", "length": "replies", "cut": "replies", "unscored": "replies",
         "called": "replies", "failed": "replies",
         "solved": "groups", "hopeless": "groups", "skipped": "groups", "policy_entropy": "written",
         "clip_share": "learned", "ratio": "learned", "kl": "learned", "gap": "learned"}


def next_tokens_loss(model, batch, totals):
    """CE(head 1) + CE(head 2) + alpha * Lexp of one micro-batch's share of the step.

    totals: {"targets_1", "targets_2", "tokens"} over all micro-batches and ranks of the step, so that summing the
    shares gives exactly: each head's sum over its own count, plus a token-weighted mean of the routing loss.
    Returns the scalar to call backward on and the detached sums to log.
    """
    return share_of_step(read(model, batch), batch, totals)


def read(model, batch):
    """The model's output for a packed batch, losses of both heads included."""
    return model(batch.ids, labels_1=batch.labels_1, labels_2=batch.labels_2, positions=batch.positions,
                 layout=batch.layout, valid=batch.valid,
                 left_out=batch.left_out, taught=batch.taught)


def share_of_step(out, batch, totals):
    """What `next_tokens_loss` returns, from the model's output."""
    counts = (totals["targets_1"], totals["targets_2"])
    loss = sum(total / max(1, count) for total, count in zip(out.loss_sums, counts))
    sums = {f"ce_{i + 1}": total.detach() for i, total in enumerate(out.loss_sums)}
    if out.divergence is not None:
        sums["ce_1"], sums["kd"] = sums["ce_1"] - out.divergence, out.divergence
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
    if "kd" in sums:
        metrics["kd"] = float(sums["kd"]) / max(1, totals["targets_1"])
        metrics["loss"] += metrics["kd"]
    for name in [n for n in EXTRAS if n in sums]:
        metrics[name] = float(sums[name]) / max(1, totals["tokens"])
        metrics["loss"] += metrics[name]
    metrics |= {k: float(sums[k]) / max(1, float(sums[unit])) for k, unit in RATES.items() if k in sums}
    return metrics | {k: float(sums[k]) / max(1, totals["targets_1"]) for k in PER_SAMPLE if k in sums}

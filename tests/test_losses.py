"""Losses against hand computations; the shares of micro-batches add up to the loss of the whole step."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toy import pack, toy_documents, toy_model
from train_agent.trainers.losses import (auxiliary_loss, compute_router_auxiliary_loss, load_balance_loss,
                                         next_tokens_loss,
                                         step_metrics, z_loss)


def batch_of(documents, width=13):
    """A batch as the loop hands it over, made without the packer: labels inside each document, everything
    supervised."""
    packed, starts = pack(documents, width)
    labels = np.full((2, packed["input_ids"].numel()), -100)
    for document, start in zip(documents, starts):
        for by in (1, 2):
            labels[by - 1, start:start + len(document) - by if len(document) > by else start] = document[by:]
    shape = packed["input_ids"].shape
    goals = torch.from_numpy(labels).view(2, *shape)
    return SimpleNamespace(ids=packed["input_ids"], positions=packed["positions"], layout=packed["layout"],
                           valid=packed["valid"],
                           labels_1=goals[0], labels_2=goals[1], left_out=None, taught=None,
                           tokens=sum(map(len, documents)), targets_1=int((goals[0] >= 0).sum()),
                           targets_2=int((goals[1] >= 0).sum()))


def totals_of(*batches):
    return {k: sum(getattr(b, k) for b in batches) for k in ("targets_1", "targets_2", "tokens")}


def test_L1_total_loss_by_hand():
    """CE(head 1) + CE(head 2) + alpha * Lexp from probabilities of each document alone."""
    model, documents = toy_model(alpha=0.3).eval(), toy_documents()
    batch = batch_of(documents)
    loss, sums = next_tokens_loss(model, batch, totals_of(batch))
    logs = {1: [], 2: []}
    for document in documents:
        out = model(torch.tensor([document]))
        for by, logits in ((1, out.logits_1), (2, out.logits_2)):
            for t in range(len(document) - by):
                logs[by].append(-math.log(float(logits[0, t].softmax(-1)[document[t + by]])))
    ce = [sum(logs[by]) / len(logs[by]) for by in (1, 2)]
    lexps = [
        float(r.loss) for r in model(batch.ids, positions=batch.positions, layout=batch.layout,
                                     valid=batch.valid).routings]
    assert float(loss) == pytest.approx(sum(ce) + 0.3 * sum(lexps), rel=1e-9)
    metrics = step_metrics(sums, totals_of(batch))
    assert metrics["ce_1"] == pytest.approx(ce[0]) and metrics["ce_2"] == pytest.approx(ce[1])
    assert metrics["lexp"] == pytest.approx(sum(lexps)) and metrics["loss"] == pytest.approx(float(loss))


def test_O5_shares_of_micro_batches_add_up():
    """Uneven micro-batches: their sum is each head's sum over its own count plus the token-weighted mean of the routing
    loss."""
    model = toy_model(alpha=0.3).eval()
    parts = [batch_of(toy_documents(2, 4, seed=1)), batch_of(toy_documents(9, 13, seed=2))]
    totals, shares = totals_of(*parts), []
    sums = {}
    for part in parts:
        share, more = next_tokens_loss(model, part, totals)
        shares.append(float(share))
        sums = {k: sums.get(k, 0) + v for k, v in more.items()}
    alone = [
        model(p.ids, labels_1=p.labels_1, labels_2=p.labels_2, positions=p.positions, layout=p.layout, valid=p.valid)
        for p in parts]
    expected = sum(float(sum(a.loss_sums[h] for a in alone)) / sum(int(a.counts[h]) for a in alone) for h in (0, 1))
    expected += sum(float(a.aux_loss) * p.tokens for a, p in zip(alone, parts)) / totals["tokens"]
    assert sum(shares) == pytest.approx(expected, rel=1e-10)
    assert step_metrics(sums, totals)["loss"] == pytest.approx(expected, rel=1e-10)
    # layers * keep * tokens, padding left out
    assert sums["load"].sum() == 2 * 2 * totals["tokens"]


def test_one_head_and_dense_models_have_no_second_or_routing_part():
    model = toy_model(use_fc2=False, use_moe=False)
    batch = batch_of(toy_documents())
    loss, sums = next_tokens_loss(model, batch, totals_of(batch))
    assert set(sums) == {"ce_1"} and set(step_metrics(sums, totals_of(batch))) == {"ce_1", "loss"}
    assert float(loss) == pytest.approx(step_metrics(sums, totals_of(batch))["loss"])


def test_a_batch_without_targets_costs_nothing():
    model, batch = toy_model(use_moe=False), batch_of([[20], [21]])
    loss, sums = next_tokens_loss(model, batch, totals_of(batch))
    loss.backward()
    assert float(loss) == 0 and step_metrics(sums, totals_of(batch))["loss"] == 0


def test_L5_load_balance():
    even = torch.full((8,), 1 / 8)
    assert float(load_balance_loss(even, even)) == pytest.approx(1)
    # k = 2 chapters take everything: C / k
    two = torch.tensor([.5, .5] + [0.] * 6)
    assert float(load_balance_loss(two, two)) == pytest.approx(4)


def test_L6_auxiliary_loss():
    even = torch.full((5,), 0.2, requires_grad=True)
    assert float(auxiliary_loss(even)) == pytest.approx(0, abs=1e-12)
    p = torch.tensor([.6, .3, .1], requires_grad=True)
    loss = auxiliary_loss(p)
    assert float(loss) == pytest.approx((.6 - 1 / 3) ** 2 + (.3 - 1 / 3) ** 2 + (.1 - 1 / 3) ** 2)
    loss.backward()
    assert p.grad.tolist() == pytest.approx([2 * (x - 1 / 3) for x in (.6, .3, .1)], abs=1e-6)


def test_L7_z_loss():
    logits = torch.randn(4, 3, 5)
    assert float(z_loss(logits)) == pytest.approx(float(torch.logsumexp(logits, -1).pow(2).mean()))
    assert torch.isfinite(z_loss(torch.full((2, 3), 1e4)))
    assert torch.isfinite(z_loss(torch.full((2, 3), 6e4, dtype=torch.float16)))    # its square overflows float16
    assert float(z_loss(torch.zeros(2, 4))) == pytest.approx(math.log(4) ** 2)


def test_L8_router_auxiliary_loss():
    layers = [{"load_balance": .01, "z_loss": .001}, {"load_balance": .02, "z_loss": .002}]
    assert compute_router_auxiliary_loss(layers) == pytest.approx(1.515e-4)
    assert compute_router_auxiliary_loss([*layers, {}]) == pytest.approx(1.515e-4)   # over the layers that have losses
    assert compute_router_auxiliary_loss([]) == 0.0 and compute_router_auxiliary_loss([{}, {}]) == 0.0
    assert compute_router_auxiliary_loss([{"auxiliary": 2.0}], auxiliary_coef=0.5) == 1.0
    assert compute_router_auxiliary_loss([{"auxiliary": 2.0}]) == 0.0
    tensors = [{k: torch.tensor(v, requires_grad=True) for k, v in layer.items()} for layer in layers]
    loss = compute_router_auxiliary_loss(tensors)
    loss.backward()
    assert float(loss) == pytest.approx(1.515e-4) and float(tensors[0]["load_balance"].grad) == pytest.approx(0.005)

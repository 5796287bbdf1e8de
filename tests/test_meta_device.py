"""A law against host waits and mixed devices: one training step of everything on a device that holds no numbers.

There `.item()`, `.tolist()`, `nonzero` and a branch on a tensor cannot be answered; on a GPU they can, by waiting for
it.
"""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import toy
from model import moe
from model.gate import Gate
from model.kernels import cross_entropy
from model.kernels.ngram_head import last_ids
from model.lora import apply_lora
from model.memory import apply_memory
from model.prefix import apply_prefix
from tools.config.keys import KEYS
from train_agent.trainers.data.preference_pairs import PreferenceBatch
from train_agent.trainers.data.teacher_table import Taught
from train_agent.trainers.dataset import Batch
from train_agent.trainers.dpo_tuning import preference_loss
from train_agent.trainers.gated_training import TurnBatch, gate_loss
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.memory_tuning import memory_loss
from train_agent.trainers.reward_tuning import reward_loss
from train_agent.trainers.rewards.play import ReplyBatch
from train_agent.trainers.running import forget_penalty

META = torch.device("meta")
TOTALS = {"targets_1": 40, "targets_2": 35, "tokens": 47}
WAYS = toy.VARIANTS | {"dropout": {"dropout": 0.1, "router_noise": 0.1},
                       "checkpointing": {"gradient_checkpointing": True}}
ADAPTERS = {
    "lora": lambda model: apply_lora(model, 2, targets="all", dropout=0.1),
    "prefix": lambda model: apply_prefix(model, "kv", 3),
    "role": lambda model: apply_prefix(model, "role", ids=(9, 10)),
    "memory": lambda model: apply_memory(model, 8, 4, 2),
}


def elsewhere(*values):
    """The devices other than meta that tensors among these lie on."""
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)} - {"meta"}


class OnMetaOnly(TorchDispatchMode):
    """Every tensor that is made or read lies on the device itself: one kept from before may not meet those of a step,
    which meta itself would let pass and a GPU would not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not (found := elsewhere(args, kwargs)), f"{function} reads a tensor on {found}"
        made = function(*args, **(kwargs or {}))
        assert not (found := elsewhere(made)), f"{function} made a tensor on {found}"
        return made


def batch(counted):
    packed, _ = toy.pack(toy.toy_documents(), 13)
    labels = packed["input_ids"].where(packed["valid"], -100)
    left_out = torch.full_like(labels, 127, dtype=torch.int8) if counted else None
    counts = (TOTALS[name] for name in ("tokens", "targets_1", "targets_2"))
    made = Batch(packed["input_ids"], packed["positions"], packed["valid"], labels, labels, packed["layout"], *counts,
                 left_out=left_out)
    return made.to(META)


def on_meta(changes, adapter=None):
    """A model in training mode that holds no numbers, adapted where asked for."""
    model = toy.toy_model(dtype=torch.float32, **changes)
    return (ADAPTERS[adapter](model) if adapter else model).train().to(META)


def learns(model, loss):
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.device == META


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS.keys())
def test_a_step_waits_for_no_device(changes):
    model, data = on_meta(changes), batch("counted" in changes)
    with OnMetaOnly():
        loss, sums = next_tokens_loss(model, data, TOTALS)
        learns(model, loss)
    assert {value.device.type for value in sums.values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS.keys())
def test_losses_one_by_one_wait_for_no_device(changes):
    """What the preference stage and the gate's targets ask for."""
    model, data = on_meta(changes), batch("counted" in changes)
    with OnMetaOnly():
        losses = model(data.ids, labels_1=data.labels_1, positions=data.positions, layout=data.layout, valid=data.valid,
                       each=True, left_out=data.left_out).losses_1
        losses.sum().backward()
    assert losses.shape == data.ids.shape


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("variant", ["default", "gqa", "dense", "gelu_layer", "sigmoid", "half_dense"])
def test_an_adapters_step_waits_for_no_device(variant, adapter):
    model, data = on_meta(toy.VARIANTS[variant], adapter), batch(False)
    with OnMetaOnly():
        learns(model, next_tokens_loss(model, data, TOTALS)[0])


def preference(model, data):
    owner = torch.arange(data.ids.numel(), device=META) % 4
    pairs = PreferenceBatch(data.ids, data.positions, data.valid, data.labels_1, data.layout, owner,
                            torch.zeros(4, device=META), tokens=47, targets_1=2, left_out=data.left_out)
    return preference_loss(0.1, model, pairs, {"targets_1": 2, "targets_2": 0, "tokens": 47})


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS.keys())
def test_a_preference_waits_for_no_device(changes):
    model, data = on_meta(changes), batch("counted" in changes)
    with OnMetaOnly():
        loss, sums = preference(model, data)
        loss.backward()
    assert loss.device == META and {value.device.type for value in sums.values()} == {"meta"}


def replies(data, kl):
    """Documents as answers that got a reward, with every second id drawn by the model."""
    count = data.ids.numel()
    ids, positions, valid, labels = (t.view(1, -1) for t in (data.ids, data.positions, data.valid, data.labels_1))
    numbers, mask = torch.ones(count, device=META), torch.zeros(count, dtype=torch.long, device=META)
    allowed = torch.ones(1, 300, dtype=torch.bool, device=META)
    return ReplyBatch(ids, positions, valid, labels, torch.arange(0, count, 2, device=META), data.layout, numbers,
                      numbers, numbers, mask, allowed, {"replies": 4}, tokens=47, targets_1=4, targets_2=24,
                      old=numbers if kl else None, reference=numbers if kl else None, general=data if kl else None)


@pytest.mark.parametrize("variant, kind, kl", [*((variant, "grpo", 0.1) for variant in WAYS),
                                               *(("default", kind, 0.0) for kind in KEYS["rl_loss"].choices)])
def test_learning_from_rewards_waits_for_no_device(variant, kind, kl):
    model, data = on_meta(WAYS[variant]), batch(False)
    options = {"rl_loss": kind, "clip_low": 0.2, "clip_high": 0.2, "kl": kl, "entropy_bonus": kl, "max_new_tokens": 9,
               "replay_weight": kl}
    with OnMetaOnly():
        loss, sums = reward_loss(options, model, replies(data, kl), {"targets_1": 4, "targets_2": 24, "tokens": 47})
        loss.backward()
    assert loss.device == META and {v.device for v in sums.values() if isinstance(v, torch.Tensor)} == {META}


def test_an_adapters_own_loss_waits_for_no_device():
    """Chapters of a memory, what a projection may change of general data."""
    coefficients = {"load_balance_coef": 0.1, "auxiliary_coef": 0.1, "z_loss_coef": 0.1}
    memory, lora, data = on_meta({}, "memory"), on_meta({}, "lora"), batch(False)
    moments = {name: torch.ones(m.base.weight.shape[1], m.base.weight.shape[1], device=META)
               for name, m in forget_penalty.adapted(lora).items()}
    assert moments
    with OnMetaOnly():
        learns(memory, memory_loss(coefficients, memory, data, TOTALS)[0])
        learns(lora, forget_penalty.keeping_loss(moments, 50, lora, data, TOTALS)[0])


def test_a_teachers_words_wait_for_no_device():
    model, data = on_meta({}), batch(False)
    words = torch.ones(*data.ids.shape, 4, device=META)
    data.taught = Taught(words.long(), words, 2.0, 0.5)
    with OnMetaOnly():
        learns(model, next_tokens_loss(model, data, TOTALS)[0])


def test_a_gates_step_waits_for_no_device():
    gate = Gate(300, 3).to(META)
    with OnMetaOnly():
        ids = torch.ones(4, 9, dtype=torch.long, device=META)
        turns = TurnBatch(ids, ids > 0, torch.ones(4, 3, device=META), tokens=36, targets_1=4)
        learns(gate, gate_loss(gate, turns, {"targets_1": 4})[0])


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("changes", toy.VARIANTS.values(), ids=toy.VARIANTS.keys())
def test_the_ways_of_a_device_have_the_numbers_of_a_cpu(changes, each, monkeypatch):
    """Loss and every gradient: rows without a target go along, experts are multiplied together."""
    packed, _ = toy.pack(toy.toy_documents(), 13)
    labels = packed["input_ids"].where(packed["valid"], -100)
    labels[:, ::3] = -100
    results = []
    for on_device in (False, True):
        if on_device:
            monkeypatch.setattr(cross_entropy, "picks", lambda device: False)
            for name in ("experts_on_cpu", "one_by_one"):
                monkeypatch.setattr(moe, name, moe.grouped_experts)
        model = toy.toy_model(**changes).train()
        out = model(**packed, labels_1=labels, labels_2=labels.roll(-1, 1), each=each)
        loss = out.losses_1.sum() if each else out.total_loss
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None), *out.counts])
    assert len(results[0]) == len(results[1])
    for made, expected in zip(*results):
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-11)


def test_a_head_that_counts_gives_a_device_the_words_of_a_cpu():
    head, ids = toy.toy_model(**toy.VARIANTS["counted"]).fc1, torch.randint(16, 300, (40,))
    head.count(ids.repeat(3), torch.arange(120))
    before = last_ids(ids, torch.arange(40), head.past)
    before[::2] += 1                                                   # hardly any of these contexts occurs
    for table in head.tables:
        results = []
        for way in (table.add_found, table.add_all):
            weight = torch.linspace(0.1, 1, 40, dtype=torch.float64).requires_grad_()
            out = way(torch.full((40, 300), 0.1, dtype=torch.float64), before, weight)
            results.append([out, *torch.autograd.grad(out.square().sum(), weight)])
        assert ((results[0][0] > 0.1).sum(1) > 0).sum() >= 20
        for made, expected in zip(*results):
            torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-12)


def test_the_law_can_fail():
    with OnMetaOnly(), pytest.raises(AssertionError, match="cpu"):
        torch.zeros(3)
    kept = torch.zeros(3)
    with OnMetaOnly(), pytest.raises(AssertionError, match="reads a tensor on"):
        torch.zeros(3, device=META) + kept
    for wait in (torch.Tensor.item, torch.Tensor.tolist, bool, torch.Tensor.nonzero):
        with OnMetaOnly(), pytest.raises((RuntimeError, NotImplementedError)):
            wait(torch.zeros((), device=META))

"""Prefixes: the first step is the base's, only the prefix moves, and a decoder with a cache sees the same."""
import copy

import pytest
import torch
from toy import VARIANTS, forced, toy_model

from model.build import merged, own_weights
from model.decoding.cache import DecodeCache
from model.prefix import apply_prefix
from model.tiny_seek import TinySeek

ROLES = [9, 10, 11]
KINDS = {"kv": {"kind": "kv", "length": 3}, "role": {"kind": "role", "ids": ROLES}}


def some_ids(rows=3, length=13, seed=0):
    ids = torch.randint(16, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 1], ids[:, 6] = 9, 10
    return ids


def adapted(base, kind):
    torch.manual_seed(1)
    model = apply_prefix(copy.deepcopy(base), **KINDS[kind])
    for tensor in own_weights(model).values():
        tensor += torch.randn_like(tensor) * 0.3
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_law(kind, name, dtype):
    base = toy_model(dtype=dtype, **VARIANTS[name]).eval()
    model = apply_prefix(copy.deepcopy(base), **KINDS[kind]).eval()
    with torch.no_grad():
        assert torch.equal(base(some_ids()).logits_1, model(some_ids()).logits_1)
        assert not torch.equal(base(some_ids()).logits_1, adapted(base, kind)(some_ids()).logits_1)


@pytest.mark.parametrize("kind", KINDS)
def test_T4_only_the_prefix_moves(kind):
    model = apply_prefix(toy_model(), **KINDS[kind]).train()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = {"kv": {f"blocks.{i}.attention.prefixes.0.{n}" for i in range(2) for n in ("keys", "values", "gate")},
                "role": {"embed.rows"}}
    assert set(learning) == expected[kind]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(learning.values(), lr=1.0)
    for seed in (0, 1):
        model(some_ids(seed=seed), labels=some_ids(seed=seed)).total_loss.backward()
        if kind == "kv" and seed == 0:                  # the gate is zero: it learns first, the values wait for it
            assert all(p.grad.any() == n.endswith("gate") for n, p in learning.items())
        optimizer.step()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == expected[kind]


def test_role_kind_changes_three_rows_of_the_table():
    base = toy_model()
    model = adapted(base, "role")
    changed = (model.embed.weight != base.embed.weight).any(-1).nonzero()[:, 0].tolist()
    assert changed == ROLES
    ids = torch.tensor([[9, 20, 10, 11, 9, 300 - 1]])
    assert torch.equal(model.embed(ids), model.embed.weight[ids])


def test_role_kind_leaves_a_tied_head_alone():
    model = adapted(toy_model(tie_embedding=True), "role")
    assert torch.equal(model.fc1.weight, model.embed.base.weight)
    config, weights = merged(model)
    assert not config.tie_embedding and torch.equal(weights["embed.weight"], model.embed.weight)
    plain = TinySeek(config).double().eval()
    plain.load_state_dict(weights)
    assert torch.equal(plain(some_ids()).logits_1, model(some_ids()).logits_1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["default", "gqa", "learned", "alibi", "gqa_window_alibi"])
@pytest.mark.parametrize("absorb", [True, False])
def test_cached_decoding(kind, name, absorb):
    model, ids = adapted(toy_model(**VARIANTS[name]), kind), some_ids(2, 11)
    with torch.no_grad():
        full = model.encode(ids)[0].view(2, 11, -1)
    cache = forced(DecodeCache.of(model, 2, 4), absorb)
    parts = [model.decode(ids[:, a:b], cache) for a, b in ((0, 6), (6, 7), (7, 11))]
    assert float((torch.cat(parts, 1) - full).abs().max()) < 1e-9


def test_a_prefix_cannot_be_merged():
    with pytest.raises(ValueError, match="folded"):
        merged(adapted(toy_model(), "kv"))


@pytest.mark.parametrize(
    "wrong", [{"kind": "kv", "length": 0}, {"kind": "role", "ids": []}, {"kind": "role", "ids": [300]}, {"kind": "x"}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError):
        apply_prefix(toy_model(), **wrong)

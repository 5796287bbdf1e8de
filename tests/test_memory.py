"""The memory adapter: zero at the start, causal always, its three router losses as they are written down."""
import copy

import pytest
import torch
from toy import VARIANTS, forced, toy_model

from model.build import merged, own_weights
from model.decoding.cache import DecodeCache
from model.memory import ChapterRouting, apply_memory
from train_agent.trainers.memory_tuning import rate_of, router_losses

SMALL = {"tokens": 12, "chapters": 4, "topk": 2}


def some_ids(rows=3, length=13, seed=0):
    return torch.randint(16, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def adapted(base, **options):
    torch.manual_seed(1)
    model = apply_memory(copy.deepcopy(base), **{**SMALL, **options})
    for tensor in own_weights(model).values():
        tensor += torch.randn_like(tensor) * 0.3
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": "all"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_law(name, lora, dtype):
    base = toy_model(dtype=dtype, **VARIANTS[name]).eval()
    model = apply_memory(copy.deepcopy(base), **SMALL, lora=lora).eval()
    with torch.no_grad():
        assert torch.equal(base(some_ids()).logits_1, model(some_ids()).logits_1)
        assert not torch.equal(base(some_ids()).logits_1, adapted(base)(some_ids()).logits_1)


@pytest.mark.parametrize("name", VARIANTS)
def test_causality(name):
    """Logits at t do not change when any later token does: the router looks at one token, never at the sequence."""
    model, ids = adapted(toy_model(**VARIANTS[name])), some_ids()
    with torch.no_grad():
        before = model(ids).logits_1
        for t in (1, 6, 12):
            other = ids.clone()
            other[:, t:] = some_ids(seed=5)[:, t:]
            assert float((model(other).logits_1[:, :t] - before[:, :t]).abs().max()) < 1e-12


def test_every_token_reads_its_own_chapters_only():
    memory = adapted(toy_model()).blocks[0].memories[0]
    x = torch.randn(40, 16, dtype=torch.float64)
    found, routing = memory(x)
    assert routing.logits.shape == (40, 4) and routing.chapters.shape == (40,
        2) and len(set(map(tuple, routing.chapters.tolist()))) > 2
    assert torch.allclose(memory(x[7:8])[0], found[7:8], atol=1e-12)
    closed = next(c for c in range(4) if c not in routing.chapters[7].tolist())
    with torch.no_grad():
        memory.bank.rows[closed * 3:closed * 3 + 3] += 10
        assert torch.allclose(memory(x[7:8])[0], found[7:8], atol=1e-12)
        memory.bank.rows[int(routing.chapters[7, 0]) * 3] += 10
        assert not torch.allclose(memory(x[7:8])[0], found[7:8], atol=1e-3)


def test_attention_against_a_plain_loop():
    """An independent reading: softmax over the rows of the open chapters of (q k / sqrt(w) + log p of the chapter)."""
    memory = adapted(toy_model()).blocks[1].memories[0]
    x = torch.randn(5, 16, dtype=torch.float64)
    found, _ = memory(x)
    normed, width = memory.norm(x), 8 // memory.heads
    for n in range(5):
        p = (memory.router.weight @ normed[n]).softmax(-1)
        rows = [r for c in sorted(range(4), key=lambda c: -p[c])[:2] for r in range(c * 3, c * 3 + 3)]
        parts = []
        for h in range(memory.heads):
            cut = slice(h * width, (h + 1) * width)
            q = (memory.query.weight @ normed[n])[cut]
            scores = torch.stack(
                [(memory.key.weight @ memory.bank.rows[r])[cut] @ q / width ** 0.5 + p[r // 3].log() for r in rows])
            values = torch.stack([(memory.value.weight @ memory.bank.rows[r])[cut] for r in rows])
            parts.append(scores.softmax(0) @ values)
        assert torch.allclose(memory.out.weight @ torch.cat(parts), found[n], atol=1e-10)


def test_router_losses():
    uniform = ChapterRouting(torch.zeros(8, 4), torch.tensor([[0, 1], [2, 3]] * 4))
    losses = router_losses(uniform, torch.ones(8, dtype=torch.bool))
    assert losses["load_balance"] == pytest.approx(1) and losses["auxiliary"] == pytest.approx(0)
    assert losses["z_loss"] == pytest.approx(torch.tensor(4.0).log().item() ** 2)
    logits = torch.zeros(8, 4)
    logits[:, :2] = 30.0                               # two chapters of four take everything: C / k = 2
    crowded = ChapterRouting(logits, torch.tensor([[0, 1]] * 8))
    losses = router_losses(crowded, torch.ones(8, dtype=torch.bool))
    assert losses["load_balance"] == pytest.approx(2) and losses["auxiliary"] == pytest.approx(4 / 16)
    valid = torch.tensor([True] * 4 + [False] * 4)
    logits = torch.randn(8, 4, requires_grad=True)
    losses = router_losses(ChapterRouting(logits, logits.topk(2).indices), valid)
    sum(losses.values()).backward()
    assert logits.grad[:4].any() and not logits.grad[4:].any()


def test_router_learns_from_the_models_own_loss():
    model = adapted(toy_model()).train()
    model(some_ids(), labels=some_ids()).loss.backward()
    assert all(b.memories[0].router.weight.grad.abs().max() > 1e-8 for b in model.blocks)


def test_O3_a_learning_rate_per_component():
    options = {"memory_lr": 2e-4, "lora_lr": 1e-4, "base_model_lr": 1e-5}
    model = apply_memory(toy_model(), **SMALL, lora={"rank": 2, "targets": "all"}, train_base=True)
    rates = {n: rate_of(options, n) for n, p in model.named_parameters() if p.requires_grad}
    assert len(rates) == len(list(model.parameters()))
    for name, rate in rates.items():
        kind = "lora" if "lora" in name else "memory" if "memories" in name else "base_model"
        assert rate == options[f"{kind}_lr"]
    assert set(rates.values()) == {2e-4, 1e-4, 1e-5}
    frozen = apply_memory(toy_model(), **SMALL)
    assert {rate_of(options, n) for n, p in frozen.named_parameters() if p.requires_grad} == {2e-4}


def test_layers_and_one_bank():
    model = apply_memory(toy_model(), **SMALL, layers=[1])
    assert [len(b.memories) for b in model.blocks] == [0, 1]
    model = apply_memory(toy_model(), **SMALL)
    assert model.blocks[0].memories[0].bank is model.blocks[1].memories[0].bank
    assert sum(n.endswith("bank.rows") for n in own_weights(model)) == 1
    assert copy.deepcopy(model).blocks[0].memories[0].bank is not model.blocks[0].memories[0].bank


@pytest.mark.parametrize(
    "wrong", [{"layers": [2]}, {"layers": [0, 0]}, {"layers": []}, {"chapters": 5}, {"topk": 5}, {"topk": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="memory"):
        apply_memory(toy_model(), **{**SMALL, **wrong})


@pytest.mark.parametrize("name", ["default", "gqa", "learned", "dense"])
@pytest.mark.parametrize("absorb", [True, False])
def test_cached_decoding(name, absorb):
    model, ids = adapted(toy_model(**VARIANTS[name]), lora={"rank": 2, "targets": "all"}), some_ids(2, 11)
    with torch.no_grad():
        full = model.encode(ids)[0].view(2, 11, -1)
    cache = forced(DecodeCache.of(model, 2, 4), absorb)
    parts = [model.decode(ids[:, a:b], cache) for a, b in ((0, 6), (6, 7), (7, 11))]
    assert float((torch.cat(parts, 1) - full).abs().max()) < 1e-9


def test_checkpointing_gives_the_same_routings():
    ids, outs = some_ids(), []
    for checkpointing in (False, True):
        model = adapted(toy_model()).train()
        model.checkpointing = checkpointing
        outs.append(model(ids, labels=ids))
    assert len(outs[0].chapters) == len(outs[1].chapters) == 2 and len(outs[1].routings) == 2
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(outs[0].chapters, outs[1].chapters))


def test_a_memory_cannot_be_merged():
    with pytest.raises(ValueError, match="folded"):
        merged(adapted(toy_model()))

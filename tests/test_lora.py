"""LoRA's laws: a new adapter changes nothing, a merged one computes the same, only its own tensors learn."""
import copy

import pytest
import torch
from toy import VARIANTS, forced, toy_model

from model import lora
from model.build import attach, build, load_adapter, merged, own_weights
from model.decoding.cache import DecodeCache
from model.config import MODEL_KEYS, ModelConfig
from model.kernels import cross_entropy
from model.lora import LowRank, LoraLinear, apply_lora, chosen, projections, target_names
from model.tiny_seek import TinySeek
from tools.config_manager import ConfigManager


def adapted(base, seed=1, spread=0.1, **options):
    """A copy of `base` with LoRA on it whose B is no longer zero."""
    torch.manual_seed(seed)
    model = apply_lora(copy.deepcopy(base), **{"rank": 2, "targets": "all", **options})
    for tensor in own_weights(model).values():
        tensor += torch.randn_like(tensor) * spread
    return model.eval()


def some_ids(rows=3, length=13, seed=0):
    return torch.randint(16, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_T3_zero_law(name, dtype):
    base = toy_model(dtype=dtype, **VARIANTS[name]).eval()
    model = apply_lora(copy.deepcopy(base), rank=2, targets="all").eval()
    with torch.no_grad():
        before, after = base(some_ids()), model(some_ids())
    assert torch.equal(before.logits_1, after.logits_1)
    assert before.logits_2 is None or torch.equal(before.logits_2, after.logits_2)


@pytest.mark.parametrize("rank", [16, 64])
def test_T3_start_of_a_and_b(rank):
    torch.manual_seed(0)
    low = LowRank(torch.empty(400, 300), rank, scale=0.02)
    assert low.a.shape == (rank, 300) and low.b.shape == (400, rank)
    assert not low.b.any() and abs(float(low.a.std()) / 0.02 - 1) < 0.05 and low.factor == 1
    assert LowRank(torch.empty(4, 3), 2, alpha=8).factor == 4


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype,bound", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_merged_law(name, dtype, bound):
    model = adapted(toy_model(dtype=dtype, **VARIANTS[name]), alpha=3.0)
    config, weights = merged(model)
    plain = TinySeek(config).to(dtype).eval()
    plain.load_state_dict(weights, strict=True)
    with torch.no_grad():
        a, b = model(some_ids()).logits_1, plain(some_ids()).logits_1
    limit = bound if dtype == torch.float64 else bound * float(b.abs().max())
    assert float((a - b).abs().max()) < limit
    assert config.tie_embedding is False and (name != "tied"
                                              or not torch.equal(weights["fc1.weight"], weights["embed.weight"]))


@pytest.mark.parametrize("name", ["default", "gqa", "learned", "relu", "sigmoid", "gqa_window_alibi"])
@pytest.mark.parametrize("absorb", [True, False])
def test_cached_decoding_with_lora(name, absorb):
    model, ids = adapted(toy_model(**VARIANTS[name])), some_ids(2, 11)
    with torch.no_grad():
        full = model.encode(ids)[0].view(2, 11, -1)
    cache = forced(DecodeCache.of(model, 2, 4), absorb)
    parts = [model.decode(ids[:, a:b], cache) for a, b in ((0, 6), (6, 7), (7, 11))]
    assert float((torch.cat(parts, 1) - full).abs().max()) < 1e-9


def test_only_the_adapter_learns_and_the_base_stays():
    base = toy_model()
    before = {n: t.clone() for n, t in base.state_dict().items()}
    model = apply_lora(base, rank=2, targets="all").train()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".lora." in n or "_lora." in n for n in learning)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        out = model(some_ids(seed=step), labels=some_ids(seed=step))
        out.total_loss.backward()
        optimizer.step()
    state = {n.replace(".base.", "."): t for n, t in model.state_dict().items() if n not in learning}
    assert state.keys() == before.keys() and all(torch.equal(state[n], before[n]) for n in before)
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n in learning
               and n.endswith((".b", "lora.b")))


def test_gradients_are_those_of_the_merged_weight():
    """d loss / d B from the loss's own product with `weight` equals what autograd gives through a plain forward."""
    check_gradients(adapted(toy_model(use_moe=False), targets="heads"))


def test_gradients_of_stacked_adapters_of_a_head_whose_loss_comes_in_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 5)
    model = adapted(toy_model(use_moe=False, tie_embedding=True, use_fc2=False), targets="heads")
    check_gradients(adapted(model, targets="heads", rank=3, alpha=7.0))


def test_an_adapted_head_makes_nothing_of_its_own_size_beside_the_logits(monkeypatch):
    """(V, d) is the largest matrix of a small model with many words: neither the sum nor its gradient may be made."""
    made = []
    model = adapted(toy_model(use_moe=False, use_fc2=False), targets="heads")
    monkeypatch.setattr(lora.LowRank, "delta", lambda self: made.append("delta"))
    monkeypatch.setattr(cross_entropy, "WeightGradient", lambda *_: made.append("gradient"))
    ids = some_ids()
    model(ids, labels=ids).loss.backward()
    assert not made and model.fc1.lora.b.grad.any()


def check_gradients(model):
    ids = some_ids()
    loss = model(ids, labels=ids).loss
    fast = torch.autograd.grad(loss, [model.fc1.lora.a, model.fc1.lora.b])
    out = model(ids)
    slow = sum(torch.nn.functional.cross_entropy(logits[:, :-k].flatten(0, 1), ids[:, k:].flatten()) for k, logits in
               ((1, out.logits_1), (2, out.logits_2)) if logits is not None)
    for a, b in zip(fast, torch.autograd.grad(slow, [model.fc1.lora.a, model.fc1.lora.b])):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("targets", ["experts", "experts.up", "experts.down"])
def test_adapted_experts_in_one_product_are_those_one_by_one(targets, monkeypatch):
    """The kernel over the weights in effect against one expert after the other, outputs and every gradient; also when
    one matrix alone learns."""
    model = adapted(toy_model(), targets=targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_lora." in name)
    found = []
    for gated in (True, False):
        if not gated:
            monkeypatch.setattr("model.moe.is_gated", lambda _: False)
        out = model(some_ids()).logits_1
        learned = [p for p in model.parameters() if p.requires_grad]
        found.append([out, *torch.autograd.grad(out.pow(2).sum(), learned)])
    assert len(found[0]) == 1 + (8 if targets == "experts" else 4)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) and a.abs().max() > 0 for a, b in zip(*found))


def test_targets_by_name():
    model = toy_model()
    every = projections(model)
    count = {
        t: len(chosen(model, t)) for t in ("all", "attention", "q_up", "experts", "router", "shared", "heads", "fc1",
                                           "blocks.0", "mlp")}
    assert count == {"all": len(every), "attention": 10, "q_up": 2, "experts": 4, "router": 2, "shared": 4, "heads": 2,
                     "fc1": 1,
                     "blocks.0": (len(every) - 2) // 2, "mlp": 10}
    assert len(chosen(model, ["q_up", "attention", "fc1"])) == 11
    assert set(target_names(model)) >= {"all", "attention", "experts", "router", "heads", "kv_up", "fc2"}
    assert "experts" not in target_names(toy_model(use_moe=False)) and "down" in target_names(toy_model(use_moe=False))


@pytest.mark.parametrize("preset", [None, *ConfigManager().config["presets"]])
def test_the_configured_targets_fit_every_preset(preset):
    """`shared` is what every token passes: the shared experts, or the whole of a dense feed-forward."""
    options = ConfigManager(preset=preset).stage("lora")
    with torch.device("meta"):
        model = TinySeek(ModelConfig.from_dict({k: options[k] for k in MODEL_KEYS} | {"max_position": 64}))
    assert len(chosen(model, "shared")) == 2 * model.config.n_layer
    heads = len(chosen(model, "heads")) if "heads" in options["lora_targets"] else 0
    assert len(chosen(model, options["lora_targets"])) == len(
        chosen(model, "attention")) + 2 * model.config.n_layer + heads


@pytest.mark.parametrize("wrong", ["q_proj", "att", "", [], ["attention", "nothing"]])
def test_a_target_that_matches_nothing_lists_the_names(wrong):
    with pytest.raises(ValueError, match="there are: all, attention"):
        apply_lora(toy_model(), targets=wrong)


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_wrong_rank(rank):
    with pytest.raises(ValueError, match="rank"):
        apply_lora(toy_model(), rank=rank)


def test_dropout_acts_in_training_only_and_on_the_heads_too():
    model = adapted(toy_model(), dropout=0.5)
    ids = some_ids()
    assert torch.equal(model(ids, labels=ids).loss, model(ids, labels=ids).loss)
    model.train()
    assert not torch.equal(model(ids).logits_1, model(ids).logits_1)
    head = model.fc1
    assert not torch.equal(head.weight, head.weight)
    mean = torch.stack([head.weight for _ in range(4000)]).mean(0)
    assert float((mean - head.eval().weight).abs().max()) < 0.1 * float(head.lora.delta().abs().max()) + 1e-3


def test_adapters_stack_and_survive_a_deepcopy():
    first = adapted(toy_model())
    second = apply_lora(first, rank=1, targets=["attention", "experts", "router"])
    for tensor in own_weights(second).values():
        tensor += 0.1
    twin = copy.deepcopy(second)
    with torch.no_grad():
        assert torch.equal(second(some_ids()).logits_1, twin(some_ids()).logits_1)
        next(iter(own_weights(twin).values())).add_(1)
        assert not torch.equal(second(some_ids()).logits_1, twin(some_ids()).logits_1)
    config, weights = merged(second)
    plain = TinySeek(config).double().eval()
    plain.load_state_dict(weights)
    assert torch.allclose(plain(some_ids()).logits_1, second(some_ids()).logits_1, atol=1e-9)
    assert isinstance(second.blocks[0].attention.out.base, LoraLinear)


def test_build_loads_exactly_the_adapters_own_tensors():
    base = toy_model(dtype=torch.float32)
    model = adapted(base)
    chain = [{"kind": "model", "config": base.config.to_dict(), "weights": base.state_dict()},
             {"kind": "adapter", "adapter": {"type": "lora", "rank": 2, "targets": ["all"]},
              "weights": own_weights(model)}]
    with torch.no_grad():
        assert torch.equal(build(chain)(some_ids()).logits_1, model(some_ids()).logits_1)
    name = next(iter(chain[1]["weights"]))
    for wrong in ({n: t for n, t in chain[1]["weights"].items() if n != name},
                  {**chain[1]["weights"], "more": torch.zeros(1)},
                  {**chain[1]["weights"], name: torch.zeros(2)}):
        with pytest.raises(ValueError, match="do not fit"):
            build([chain[0], {**chain[1], "weights": wrong}])
    with pytest.raises(ValueError, match="unknown adapter"):
        attach(toy_model(), {"type": "magic"})
    with pytest.raises(ValueError):
        attach(toy_model(), {"type": "lora", "sauce": 1})
    with pytest.raises(ValueError, match="do not fit"):
        load_adapter(attach(toy_model(dtype=torch.float32), {"type": "lora", "rank": 3}), chain[1]["weights"])


def test_gradient_checkpointing_changes_no_gradient():
    ids, grads = some_ids(), []
    for checkpointing in (False, True):
        model = adapted(toy_model()).train()
        model.checkpointing = checkpointing
        model(ids, labels=ids).total_loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads))

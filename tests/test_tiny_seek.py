"""Laws of the whole model, held for every option: causality, packing, checkpointing, gradients, the first loss."""
import math

import pytest
import torch
from torch.nn import functional as F

from model import ModelConfig, TinySeek
from model.config import MODEL_KEYS
from tools.config_manager import ConfigManager
from toy import SHAPE, VARIANTS, pack, toy_config, toy_documents, toy_model

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def some_ids(rows=2, length=9, seed=0):
    return torch.randint(16, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model, input_ids, **more):
    out = model(input_ids, **more)
    return [t for t in (out.logits_1, out.logits_2) if t is not None]


# ---- losses ----

def test_L1_loss_is_both_heads_cross_entropy():
    model, ids = toy_model(), some_ids()
    out = model(ids, labels=ids, return_logits=True)
    expected = F.cross_entropy(out.logits_1[:, :-1].reshape(-1, 300), ids[:, 1:].reshape(-1)) + \
        F.cross_entropy(out.logits_2[:, :-2].reshape(-1, 300), ids[:, 2:].reshape(-1))
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-10)
    assert [int(c) for c in out.counts] == [16, 14]


def test_L1_each_head_divides_by_its_own_count_and_ignores_what_is_no_target():
    model, ids = toy_model(), some_ids()
    labels = ids.clone()
    labels[0, 3:] = -100
    out = model(ids, labels=labels, return_logits=True)
    means = [F.cross_entropy(l[:, :-by].reshape(-1, 300), labels[:, by:].reshape(-1), ignore_index=-100)
             for by, l in ((1, out.logits_1), (2, out.logits_2))]
    assert float(out.loss) == pytest.approx(float(sum(means)), rel=1e-10)
    assert [int(c) for c in out.counts] == [2 + 8, 1 + 7]


def test_L4_routing_loss_is_added_once():
    model, ids = toy_model(alpha=0.5), some_ids()
    out = model(ids, labels=ids)
    assert float(out.aux_loss) == pytest.approx(0.5 * sum(float(r.loss) for r in out.routings))
    assert float(out.total_loss - out.loss) == pytest.approx(float(out.aux_loss))
    assert len(out.routings) == 2 and out.aux_loss.requires_grad


def test_T10_outputs_of_a_batch_as_keywords():
    batch = {"input_ids": some_ids(), "labels": some_ids()}
    out = toy_model()(**batch)
    assert out.loss.ndim == 0 and out.aux_loss.ndim == 0
    assert out.logits is None                                                     # not asked for, not computed
    asked = toy_model()(**batch, return_logits=True)
    assert asked.logits.shape == (2, 9, 300) and asked.logits is asked.logits_1
    assert toy_model()(some_ids()).loss is None


# ---- causality ----

@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_E8_logits_do_not_move_when_later_tokens_do(variant, training):
    model = toy_model(**VARIANTS[variant]).train(training)
    ids = some_ids(2, 12)
    before = logits(model, ids)
    assert len(before) == (1 if VARIANTS[variant].get("use_fc2") is False else 2)
    for t in (1, 5, 11):
        later = ids.clone()
        later[:, t:] = (later[:, t:] - 16 + 100) % 284 + 16
        for old, new in zip(before, logits(model, later)):
            assert (new[:, :t] - old[:, :t]).abs().max() < 1e-9
            assert (new[:, t:] - old[:, t:]).abs().max() > 1e-3                   # the test can fail


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_A3_reach_of_a_window(layers, position):
    """W = 3: one layer sees i - 2 .. i, L layers L * (W - 1) tokens back and not one further."""
    model = toy_model(n_layer=layers, sliding_window=3, position=position, use_moe=False)
    ids = some_ids(1, 12)
    other = ids.clone()
    other[0, 2] = 299 - int(ids[0, 2]) + 16
    moved = (model(other).logits_1 - model(ids).logits_1).abs().amax(-1)[0] > 1e-9
    assert moved.nonzero().flatten().tolist() == list(range(2, min(12, 2 + 2 * layers + 1)))


def test_A3_a_window_as_wide_as_the_text_is_full_attention():
    ids = some_ids(2, 9)
    full, wide, narrow = (toy_model(sliding_window=w)(ids).logits_1 for w in (None, 9, 8))
    torch.testing.assert_close(wide, full, rtol=0, atol=1e-12)
    torch.testing.assert_close(narrow[:, :8], full[:, :8], rtol=0, atol=1e-12)
    assert (narrow[:, 8] - full[:, 8]).abs().max() > 1e-3


# ---- packing ----

@every_variant
def test_packed_is_unpacked_in_float64_and_float32(variant):
    """Every document alone, as a batch of one, must give the logits that it has in a packed row."""
    model = toy_model(**VARIANTS[variant]).eval()
    documents = toy_documents()
    batch, starts = pack(documents, 13)
    assert batch["input_ids"].shape[0] < len(documents)
    alone = [logits(model, torch.tensor([d])) for d in documents]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        packed = logits(model.to(dtype), **batch)
        for head in range(len(packed)):
            largest = max(float(a[head].abs().max()) for a in alone)
            for document, start, single in zip(documents, starts, alone):
                part = packed[head].flatten(0, 1)[start:start + len(document)]
                assert (part - single[head][0]).abs().max() < tolerance * (largest if dtype == torch.float32 else 1)


@pytest.mark.parametrize("variant", ["default", "gqa", "window", "alibi"])
def test_P2_packed_is_unpacked_under_bfloat16(variant):
    """The reduced-precision paths have code of their own; they must keep documents apart and the future hidden as
    well."""
    model = toy_model(dtype=torch.float32, use_moe=False, **VARIANTS[variant]).eval()
    documents = toy_documents(9, 13)
    batch, starts = pack(documents, 20)
    exact = logits(model, **batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = logits(model, **batch)
        for head in range(2):
            largest = float(exact[head].abs().max())
            assert 0 < (packed[head] - exact[head])[batch["valid"]].abs().max() < 0.05 * largest
            for document, start in zip(documents, starts):
                alone = logits(model, torch.tensor([document]))[head][0]
                part = packed[head].flatten(0, 1)[start:start + len(document)]
                assert (part - alone).abs().max() < 0.05 * largest


def test_packed_documents_do_not_see_each_other_even_through_the_gradient():
    model = toy_model()
    batch, starts = pack([[20, 21, 22], [30, 31], [40, 41, 42, 43]], 9)
    embedded = []
    model.dropout.register_forward_hook(lambda m, i, out: embedded.append(out))
    out = model(**batch).logits_1.flatten(0, 1)
    gradient, = torch.autograd.grad(out[starts[1]:starts[1] + 2].sum(), embedded[0])
    assert gradient.abs().sum(-1).nonzero().flatten().tolist() == [3, 4]


# ---- gradients ----

@every_variant
def test_E6_every_trainable_tensor_gets_a_gradient(variant):
    """No exception at all: with some tokens per expert, not one tensor stays without a gradient."""
    model = toy_model(**VARIANTS[variant])
    ids = some_ids(4, 16)
    model(ids, labels=ids).total_loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert missing == []


def test_E6_exceptions_by_name():
    """Without a load-balance loss and with one kept expert of one, softmax routing has nothing to decide: the
    router."""
    model = toy_model(other_experts=1, keep=1)
    ids = some_ids(4, 16)
    model(ids, labels=ids).total_loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12]
    assert missing == ["blocks.0.mlp.router.weight", "blocks.1.mlp.router.weight"]


@pytest.mark.parametrize("variant", ["default", "alibi", "gqa_window_alibi", "sigmoid", "dense", "gpt2"])
def test_P4_gradient_checkpointing_changes_nothing(variant):
    """Dropout and router noise are replayed; the routing losses come out as well."""
    noisy = {"dropout": 0.3} | ({} if VARIANTS[variant].get("use_moe") is False else {"router_noise": 0.5})
    batch, _ = pack(toy_documents(), 13)
    labels = torch.where(batch["valid"], batch["input_ids"], -100)
    results = []
    for enabled in (False, True):
        model = toy_model(**VARIANTS[variant], **noisy).train()
        calls = []
        model.blocks[0].mlp_norm.register_forward_hook(lambda *_: calls.append(1))
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        out = model(**batch, labels_1=labels, labels_2=labels)
        out.total_loss.backward()
        assert len(calls) == 1 + enabled                                          # it does recompute
        results.append([out.total_loss, *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-12)
    assert toy_model(gradient_checkpointing=True).checkpointing


def test_dropout_acts_in_training_only():
    model, ids = toy_model(dropout=0.5), some_ids()
    assert not torch.equal(model(ids).logits_1, model(ids).logits_1)
    model.eval()
    assert torch.equal(model(ids).logits_1, model(ids).logits_1)


# ---- the start ----

def test_first_loss_is_ln_V_at_the_default_configuration():
    """Of both heads, within 5 %; the targets are other random ids."""
    config = ModelConfig.from_dict(ConfigManager(stage="pre").model())
    assert config.use_moe and config.use_fc2
    torch.manual_seed(0)
    model = TinySeek(config)
    ids, goal = torch.randint(16, config.vocab_size, (2, 2, 64))
    with torch.no_grad():
        out = model(ids, labels_1=goal, labels_2=goal)
    for total, count in zip(out.loss_sums, out.counts):
        assert abs(float(total / count) / math.log(config.vocab_size) - 1) < 0.05


@every_variant
def test_first_loss_is_ln_V_for_every_option(variant):
    torch.manual_seed(0)
    model = TinySeek(toy_config(**VARIANTS[variant]))
    with torch.no_grad():
        out = model(some_ids(4, 16), labels=some_ids(4, 16, seed=1))
    for total, count in zip(out.loss_sums, out.counts):
        assert abs(float(total / count) / math.log(300) - 1) < 0.05


def test_E5_one_batch_overfits():
    torch.manual_seed(0)
    model = TinySeek(toy_config(d_model=32, hidden=32))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch, _ = pack(toy_documents(), 13)
    labels = [torch.full_like(batch["input_ids"], -100) for _ in range(2)]
    lengths = torch.where(batch["valid"], batch["positions"], -1)
    for by in (1, 2):                                                             # within a document only
        inside = lengths[:, by:] == lengths[:, :-by] + by
        labels[by - 1][:, :-by] = torch.where(inside, batch["input_ids"][:, by:], -100)
    losses = []
    for _ in range(60):
        out = model(**batch, labels_1=labels[0], labels_2=labels[1])
        optimizer.zero_grad()
        out.total_loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


# ---- shapes ----

def test_tied_head_is_the_embedding():
    model = toy_model(tie_embedding=True)
    assert model.fc1.weight is model.embed.weight and model.fc2.weight is not model.embed.weight
    again = toy_model(seed=1, tie_embedding=True)
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(some_ids()).logits_1, model(some_ids()).logits_1)


def test_learned_positions_end_somewhere():
    model = toy_model(position="learned", max_position=8)
    assert model(some_ids(1, 8)).logits_1.shape == (1, 8, 300)
    with pytest.raises(ValueError, match="max_position"):
        model(some_ids(1, 9))


def test_A6_gpt2_preset_runs():
    """Learned positions, LayerNorm, GELU, plain multi-head attention, dense or with experts."""
    values = ConfigManager(preset="gpt2",
                           overrides={"d_model": 32, "n_head": 4, "n_kv_head": 4, "n_layer": 2}).model() | {
                               "vocab_size": 300}
    for use_moe in (False, True):
        model = TinySeek(ModelConfig.from_dict({**values, "use_moe": use_moe, "hidden": 16}))
        kinds = {type(m).__name__ for m in model.modules()}
        assert {"LayerNorm", "GQA", "Embedding"} <= kinds and "RMSNorm" not in kinds and ("MoE" in kinds) == use_moe
        assert model.place.weight.shape[0] == values["max_position"] >= 256 and model.config.activation == "gelu"
        assert model.blocks[0].attention.kv.weight.shape[0] == 2 * 32             # as many key heads as query heads
        out = model(some_ids(), labels=some_ids())
        out.total_loss.backward()
        assert torch.isfinite(out.loss)


def test_no_biases_in_the_default_shape():
    assert all(isinstance(m.bias, type(None)) for m in toy_model().modules() if isinstance(m, torch.nn.Linear))


def test_config_round_trip_and_mistakes():
    config = toy_config()
    assert ModelConfig.from_dict(config.to_dict()) == config and set(config.to_dict()) == set(MODEL_KEYS)
    with pytest.raises(ValueError, match="n_heads"):
        ModelConfig.from_dict({"vocab_size": 300, "n_heads": 2})
    wrong = [{"n_head": 3}, {"activation": "tanh"}, {"position": "learned"}, {"d_r": 3},
             {"attention": "gqa", "n_kv_head": 3, "n_head": 4},
             {"norm": "batch"}, {"router": "hash"}, {"moe_loss": "none"}]
    for changes in wrong:
        with pytest.raises(ValueError):
            toy_config(**changes)
    assert SHAPE["n_layer"] == config.n_layer

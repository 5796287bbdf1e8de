"""Experts by a loop over tokens, routing losses by closed forms, the balancing bias by what it does."""
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import toy
from model.kernels import expert_products
from model.kernels.expert_products import can_group
from model.moe import MoE, Router, balance_routers, load_balance_loss, one_by_one, sequence_balance
from tools.checkpoint import read_checkpoint
from tools.config_manager import ConfigManager
from toy import toy_config, toy_model

E, K = 4, 2


def layer_of(**changes):
    model = toy_model(n_layer=1, **changes)
    return model.blocks[0].mlp, model.config


def inputs(rows=9, width=16, seed=3):
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def feed(token, up, down, activation):
    """down(act(up x)); gated kinds hold the gate in the first half of `up`."""
    inner = up @ token
    if activation in ("swiglu", "geglu"):
        gate, inner = inner.chunk(2)
        return down @ ((F.silu if activation == "swiglu" else F.gelu)(gate) * inner)
    return down @ (F.gelu if activation == "gelu" else F.relu)(inner)


def plain_moe(layer, x, config):
    """One token at a time, one expert at a time."""
    out = []
    for token in x:
        logits = layer.router.weight @ token
        scores = torch.softmax(logits, 0) if config.router == "softmax" else torch.sigmoid(logits)
        chosen = sorted(range(len(scores)), key=lambda e: -float(scores[e].detach()))[:config.keep]
        weights = {e: scores[e] for e in chosen}
        if config.router == "sigmoid":
            weights = {e: w / sum(weights.values()) for e, w in weights.items()}
        mixed = feed(token, layer.shared.up.weight, layer.shared.down.weight, config.activation)
        for e, w in weights.items():
            mixed = mixed + config.routed_scaling * w * feed(token, layer.up[e], layer.down[e], config.activation)
        out.append(mixed)
    return torch.stack(out)


@pytest.mark.parametrize("changes", [{}, {"keep": 1, "routed_scaling": 2.5}, {"keep": 4}, {"router": "sigmoid"},
                                     {"activation": "gelu"}, {"activation": "geglu", "shared_experts": 2}], ids=str)
def test_output_and_gradients_are_those_of_a_loop_over_tokens(changes):
    layer, config = layer_of(**changes)
    x = inputs()
    results = []
    for forward in (lambda t: layer(t)[0], lambda t: plain_moe(layer, t, config)):
        leaf = x.clone().requires_grad_()
        out = forward(leaf)
        results.append([out, *torch.autograd.grad((out * torch.sin(out)).sum(), [leaf, *layer.parameters()])])
    for made, expected in zip(*results):
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_P2_under_bfloat16_output_and_gradients_stay_close(activation):
    # weights and inputs that bfloat16 holds exactly
    layer = layer_of(activation=activation)[0].bfloat16().float()
    x, results = inputs(60).bfloat16().float(), []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = layer(leaf.bfloat16() if enabled else leaf)[0]
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        results.append([out, *torch.autograd.grad((out.float() * torch.sin(4 * x)).sum(), [leaf, *layer.parameters()])])
    for exact, narrow in zip(*results):
        assert narrow.dtype == exact.dtype or narrow is results[1][0]
        assert 0 < (narrow - exact).norm() < 0.02 * exact.norm()


def test_softmax_weights_are_not_renormalised_sigmoid_ones_are():
    x = inputs()
    softmax, sigmoid = (layer_of(router=kind, routed_scaling=3.0)[0].router(x)[0] / 3
                        for kind in ("softmax", "sigmoid"))
    assert (softmax.sum(-1) < 0.999).all()
    torch.testing.assert_close(sigmoid.sum(-1), torch.ones(9, dtype=torch.float64))


def test_router_works_in_float32_under_autocast():
    router = layer_of()[0].router.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = router(inputs().bfloat16())[3]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, inputs().bfloat16().float() @ router.weight.T)


def test_router_noise_acts_in_training_only():
    router = layer_of(router_noise=1.0)[0].router
    x = inputs()
    assert not torch.equal(router(x)[3], router(x)[3])
    router.eval()
    assert torch.equal(router(x)[3], x @ router.weight.T)


def test_an_expert_without_tokens_does_no_harm():
    layer, config = layer_of(keep=1)
    x = inputs(1)
    layer(x)[0].sum().backward()
    used = (layer.up.grad != 0).flatten(1).any(1)
    assert int(used.sum()) == 1 and torch.isfinite(layer.up.grad).all()


# ---- routing losses ----

def statistics(layer, chosen, probabilities, valid=None, sequences=1):
    logits = probabilities.log()
    return layer.statistics(torch.as_tensor(chosen), probabilities, logits, valid, sequences)


def test_L2_lexp_is_zero_when_balanced():
    layer, _ = layer_of()
    even = torch.full((4, E), 1 / E, dtype=torch.float64)
    routing = statistics(layer, [[0, 1], [2, 3], [1, 2], [3, 0]], even)
    assert float(routing.loss) == pytest.approx(0, abs=1e-12)
    assert routing.load.tolist() == [2, 2, 2, 2]
    assert float(routing.entropy) == pytest.approx(math.log(E))


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_L2_lexp_is_E_over_keep_minus_one_when_collapsed(keep):
    layer, config = layer_of(keep=keep)
    layer.router.weight.data.zero_()
    layer.router.weight.data[:keep] = 50.0
    x = torch.ones(6, 16, dtype=torch.float64)
    assert float(layer(x)[1].loss) == pytest.approx(E / keep - 1, abs=1e-9)


def test_L2_lexp_is_its_formula_on_any_batch():
    layer, _ = layer_of()
    x = inputs(30)
    _, experts, probabilities, _ = layer.router(x)
    counts = [sum(e in row for row in experts.tolist()) for e in range(E)]
    means = [sum(row[e] for row in probabilities.tolist()) / 30 for e in range(E)]
    expected = E * sum(c / (30 * K) * p for c, p in zip(counts, means)) - 1
    assert float(layer(x)[1].loss) == pytest.approx(expected, rel=1e-10)


def test_L2_lexp_has_a_gradient_in_the_router_that_balances():
    layer, _ = layer_of()
    x = inputs(64)
    before = layer(x)[1].loss
    gradient, = torch.autograd.grad(before, layer.router.weight)
    assert gradient.abs().max() > 1e-4
    layer.router.weight.data -= 0.05 * gradient
    assert float(layer(x)[1].loss) < float(before)


def test_L2_lexp_can_dip_below_zero():
    assert float(load_balance_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.8]))) - 1 == pytest.approx(-0.6)


def test_L2_padding_is_left_out():
    layer, _ = layer_of()
    x, valid = inputs(12), torch.tensor([True] * 7 + [False] * 5)
    padded, alone = layer(x, valid)[1], layer(x[:7])[1]
    for name in ("loss", "z_loss", "load", "entropy"):
        torch.testing.assert_close(getattr(padded, name), getattr(alone, name))


@pytest.mark.parametrize("sequences", [1, 3])
def test_L3_sequence_loss_is_one_when_uniform_and_E_over_keep_when_collapsed(sequences):
    layer, _ = layer_of(moe_loss="aux")
    even = torch.full((12, E), 1 / E, dtype=torch.float64)
    assert float(statistics(layer, [[0, 1], [2, 3]] * 6, even, sequences=sequences).loss) == pytest.approx(1)
    sure = torch.tensor([[.5, .5, 0, 0]] * 12, dtype=torch.float64)
    assert float(statistics(layer, [[0, 1]] * 12, sure, sequences=sequences).loss) == pytest.approx(E / K)


def test_L3_sequence_loss_is_its_formula_and_leaves_padding_out():
    layer, _ = layer_of(moe_loss="aux")
    x = inputs(12)
    # three sequences of four, the last empty
    valid = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]).bool()
    _, experts, probabilities, _ = layer.router(x)
    per_sequence = []
    for rows in ([0, 1, 2], [4, 5, 6, 7]):
        T = len(rows)
        count = [sum(e in experts[r].tolist() for r in rows) * E / (T * K) for e in range(E)]
        per_sequence.append(sum(count[e] * sum(float(probabilities[r, e]) for r in rows) / T for e in range(E)))
    assert float(layer(x, valid, 3)[1].loss) == pytest.approx(sum(per_sequence) / 2, rel=1e-5)
    chosen = torch.zeros(12, E, dtype=torch.float64).scatter_(1, experts, 1.0)
    loss = sequence_balance(chosen, probabilities, valid.double(), 3, K)
    assert torch.autograd.grad(loss, layer.router.weight)[0].abs().max() > 1e-5


def test_L3_uniform_model_pays_alpha_per_layer():
    model = toy_model(moe_loss="aux", alpha=0.25)
    for block in model.blocks:
        block.mlp.router.weight.data.zero_()                                          # every probability 1 / E
    out = model(torch.randint(16, 300, (2, 8)))
    assert float(out.aux_loss) == pytest.approx(2 * 0.25)


def test_L7_router_z_loss():
    layer, _ = layer_of()
    x = inputs()
    expected = torch.logsumexp(x @ layer.router.weight.T, -1).pow(2).mean()
    assert float(layer(x)[1].z_loss) == pytest.approx(float(expected))
    with_z, without = (
        toy_model(router_z_loss=z)(torch.randint(16, 300, (1, 8), generator=torch.Generator().manual_seed(0)))
                       for z in (0.5, 0.0))
    z = sum(float(r.z_loss) for r in with_z.routings)
    assert float(with_z.aux_loss - without.aux_loss) == pytest.approx(0.5 * z)


# ---- other names ----

def test_A4_foreign_names_mean_the_same_model():
    """MiniMind's words for our keys; use_moe false is a dense model without a router."""
    foreign = ConfigManager(
        overrides={"n_routed_experts": 6, "num_experts_per_tok": 3, "n_shared_experts": 1, "hidden_size": 64,
                                       "num_attention_heads": 4, "num_hidden_layers": 2}).model()
    assert (foreign["other_experts"], foreign["keep"], foreign["shared_experts"]) == (6, 3, 1)
    assert (foreign["d_model"], foreign["n_head"], foreign["n_layer"]) == (64, 4, 2)
    dense = toy_model(use_moe=False)
    assert not any(isinstance(m, (MoE, Router)) for m in dense.modules())
    out = dense(torch.randint(16, 300, (1, 8)), labels=torch.randint(16, 300, (1, 8)))
    assert out.aux_loss is None and out.total_loss == out.loss


def test_A4_dense_layer_has_the_active_parameters_of_a_moe_layer():
    moe, dense = toy_model(n_dense_layer=1).blocks[1].mlp, toy_model(n_dense_layer=1).blocks[0].mlp
    active = K * (moe.up[0].numel() + moe.down[0].numel()) + sum(p.numel() for p in moe.shared.parameters())
    assert sum(p.numel() for p in dense.parameters()) == active


def test_experts_must_fit():
    for changes in ({"keep": 5}, {"keep": 0}, {"shared_experts": 0}):
        with pytest.raises(ValueError):
            toy_config(**changes)
    toy_config(keep=5, use_moe=False)                                                 # nobody asks


def only(experts):
    return torch.tensor(experts), torch.rand(len(experts), len(experts[0]), dtype=torch.float64)


CHOICES = {"usual": None, "one expert for all": [[2]] * 9, "one token": [[3, 1]], "two": [[0, 2], [0, 1]],
           "none for some": [[0, 1]] * 5 + [[1, 0]] * 4}


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("chosen", CHOICES)
@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu", "relu2"])
def test_all_experts_at_once_are_the_experts_one_by_one(activation, chosen, kernel, monkeypatch):
    """Output and gradients; kernel: torch's grouped product, which runs on a CPU too, against padded blocks."""
    if kernel and not hasattr(F, "grouped_mm"):
        pytest.skip("这个 PyTorch 没有 grouped_mm")
    monkeypatch.setattr(expert_products, "can_group", lambda *_: kernel)
    layer, _ = layer_of(activation=activation, hidden=16)
    dtype = torch.float32 if kernel else torch.float64
    layer.to(dtype)
    x, experts = inputs().to(dtype), CHOICES[chosen]
    weights, experts = layer.router(x)[:2] if experts is None else reversed(only(experts))
    x, weights, results = x[:len(experts)], weights.detach().to(dtype), []
    ways = [one_by_one, expert_products.grouped_experts] + [expert_products.experts_on_cpu] * (activation[-3:] == "glu")
    for way in ways:
        leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_(), layer.up, layer.down]
        out = way(*leaves[:2], experts, layer.up, layer.down, activation)
        results.append([out, *torch.autograd.grad((out * torch.sin(out)).sum(), leaves)])
    near = {"rtol": 1e-4, "atol": 1e-5} if kernel else {"rtol": 1e-10, "atol": 1e-12}
    for expected, *others in zip(*results):
        for made in others:
            torch.testing.assert_close(made, expected, **near)


def test_grouped_products_only_where_they_run():
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    assert not can_group(cpu, bf16, 16, 16) and not can_group(torch.device("cuda"), torch.float16, 16, 16)


# ---- the bias of DeepSeek-V3's router ----

def test_the_bias_moves_against_the_load_and_only_the_choice_feels_it():
    layer, config = layer_of(router="sigmoid", router_bias_rate=0.25)
    x = inputs(40)
    weights, experts, scores, _ = layer.router(x)
    load = torch.bincount(experts.flatten(), minlength=config.other_experts)
    layer.router.balance(load)
    mean = load.float().mean()
    assert layer.router.bias.tolist() == [0.25 * ((mean > n).float() - (mean < n).float()).item() for n in load]
    layer.router.bias[2] = 5.0
    weights, experts, after, _ = layer.router(x)
    assert (experts == 2).any(1).all() and torch.equal(after, scores), "probabilities stay what they were"
    raw = torch.sigmoid(layer.router.logits(x)).gather(1, experts)
    torch.testing.assert_close(weights, config.routed_scaling * raw / raw.sum(-1, keepdim=True))


def imbalance(options):
    """How far from even the experts' load was in the last steps of the newest run: 0 = even."""
    loads = torch.tensor([row["expert_load"] for row in toy.log_lines(options) if "expert_load" in row][-30:])
    return float((loads - 1 / E).pow(2).mean())


def test_sigmoid_routers_are_balanced_by_their_bias_in_a_run(options):
    keys = dict(router="sigmoid", alpha=0.0, rows=60, max_epochs=6, batch_size=8, init_lr=2e-3, scheduler="constant")
    loops, uneven = {}, {}
    for rate in (0.0, 0.01):
        chosen = options(router_bias_rate=rate, name=f"rate{rate}", **keys)
        loops[rate] = toy.train(chosen)
        uneven[rate] = imbalance(chosen)
    assert uneven[0.01] < 0.5 * uneven[0.0]
    biases = {rate: torch.stack([b.mlp.router.bias for b in loop.model.blocks]) for rate, loop in loops.items()}
    assert not biases[0.0].any() and biases[0.01].any()
    steps = biases[0.01] / 0.01
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    saved = read_checkpoint(Path(options(name="rate0.01")["out_dir"]) / "rate0.01"
                            / "TinySeek_Pre_final.pkl")["weights"]
    assert torch.equal(saved["blocks.1.mlp.router.bias"], biases[0.01][1])


def test_the_bias_resumes_bit_for_bit_and_a_skipped_step_leaves_it(options):
    keys = dict(router="sigmoid", router_bias_rate=0.02, rows=40, save_precision="bf16", dropout=0.1)
    whole = toy.train(options(name="whole", **keys))
    toy.train(options(name="cut", **keys), stop_after=5)
    again = toy.train(options(name="cut", **keys))
    assert again.history[0]["step"] == 6 and toy.same_tensors(whole.model.state_dict(), again.model.state_dict())
    saved = read_checkpoint(Path(options(name="cut")["out_dir"]) / "cut" / "TinySeek_Pre_final.pkl")["weights"]
    assert torch.equal(saved["blocks.0.mlp.router.bias"], again.model.blocks[0].mlp.router.bias), "and is saved whole"
    stage = toy.build_stage(options(name="skipped", max_steps=1, **keys))
    loop = toy.ToyLoop(stage)
    loop.may_step = lambda group: False
    loop.run()
    assert not stage.model.blocks[0].mlp.router.bias.any()


def test_a_frozen_router_keeps_its_bias():
    model = toy.toy_model(router="sigmoid")
    balance_routers(model.requires_grad_(False), torch.tensor([[4.0, 0, 0, 0]] * 2))
    assert not any(block.mlp.router.bias.any() for block in model.blocks)

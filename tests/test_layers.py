"""Norms, rotary positions, ALiBi slopes and activations against their formulas."""
import math

import pytest
import torch
from torch.nn import functional as F

from model import layers
from model.layers import (_RMSNorm, FeedForward, activate, alibi_slopes, compute_dtype,
                          make_norm, residual_std, rotary_tables, rotate)
from toy import toy_config


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_rms_norm_is_its_formula():
    norm = make_norm("rms", 6, 1e-6).double()
    norm.weight.data = randn(6)
    x = randn(5, 6)
    plain = [[v / math.sqrt(sum(w * w for w in row) / 6 + 1e-6) * g for v, g in zip(row, norm.weight.tolist())]
             for row in x.tolist()]
    torch.testing.assert_close(norm(x), torch.tensor(plain, dtype=torch.float64), rtol=1e-12, atol=0)


def test_away_from_a_cpu_the_norm_is_torchs_own_kernel(monkeypatch):
    # autocast does not know the meta device
    monkeypatch.setattr(layers, "compute_dtype", lambda x: x.dtype)
    for device, own in (("cpu", True), ("meta", False)):
        out = make_norm("rms", 6, 1e-6).to(device)(torch.ones(5, 6, device=device))
        assert ("_RMSNorm" in type(out.grad_fn).__name__) == own and out.requires_grad


def test_layer_norm_is_its_formula():
    norm = make_norm("layer", 6, 1e-5).double()
    norm.weight.data, norm.bias.data = randn(6), randn(6) + 1
    x = randn(5, 6)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True)
                                              + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_compute_in_float32(kind, dtype):
    """300^2 overflows float16; the norm of half-precision input must be the rounded float32 result."""
    norm, x = make_norm(kind, 8, 1e-6), (randn(4, 8, dtype=torch.float32) * 300).to(dtype)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), norm(x.float()).to(dtype), rtol=0, atol=0)


def test_rotation_is_a_complex_product():
    """Interleaved pairs (x0, x1) are complex numbers turned by the angle position * theta^(-2i/width)."""
    positions, x = torch.tensor([0, 1, 7, 500]), randn(4, 3, 8)
    turned = rotate(x, rotary_tables(positions, 8, 10000.0))
    for n, position in enumerate(positions.tolist()):
        for i in range(4):
            factor = complex(math.cos(position * 10000 ** (-2 * i / 8)), math.sin(position * 10000 ** (-2 * i / 8)))
            for head in range(3):
                product = complex(*x[n, head, 2 * i:2 * i + 2].tolist()) * factor
                assert abs(complex(*turned[n, head, 2 * i:2 * i + 2].tolist()) - product) < 1e-6


@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_rotation_on_a_cpu_is_the_one_of_other_devices(dtype, near, monkeypatch):
    """Value and gradient, also of a part of something wider that begins at an odd place."""
    tables, wide = rotary_tables(torch.arange(5), 8, 100.0), randn(5, 2, 11, dtype=torch.float32).to(dtype)
    made = []
    for elsewhere in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: elsewhere)
        x = wide.clone().requires_grad_()
        out = rotate(x[..., 3:], tables)
        made.append((out, *torch.autograd.grad(out.square().sum() + out.sum(), x)))
    for own, expected in zip(*made):
        assert own.dtype == dtype
        torch.testing.assert_close(own, expected, rtol=near, atol=near)


def test_rotation_sees_only_the_distance():
    q, k = randn(1, 1, 8), randn(2, 1, 8)[1:]
    def product(i, j):
        return float(
            (
                rotate(q, rotary_tables(torch.tensor([i]), 8, 100.0)) * rotate(k,
                    rotary_tables(torch.tensor([j]), 8, 100.0))).sum())
    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-5)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)


def test_A1_alibi_slopes():
    assert alibi_slopes(8).tolist() == [2.0 ** -i for i in range(1, 9)]
    for heads in (1, 3, 6, 12):
        assert alibi_slopes(heads).tolist() == pytest.approx([2 ** (-8 * i / heads) for i in range(1, heads + 1)])


@pytest.mark.parametrize("kind, act", [("swiglu", lambda v: v / (1 + math.exp(-v))),
                                       ("geglu", lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))])
def test_A2_gated_activations(kind, act):
    """down(act(gate x) * (up x)), the gate in the first half."""
    layer, x = FeedForward(4, 3, kind).double(), randn(2, 4)
    gate, up = (layer.up.weight[:3] @ x.T).T, (layer.up.weight[3:] @ x.T).T
    inner = torch.tensor([[act(g) * u for g, u in zip(*rows)] for rows in zip(gate.tolist(), up.tolist())],
                         dtype=torch.float64)
    torch.testing.assert_close(layer(x), inner @ layer.down.weight.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["swiglu", "geglu", "gelu", "relu", "relu2"])
def test_gradients_of_norms_and_activations_are_those_of_the_formula(kind):
    """Some are written by hand for speed; numerical differentiation is the judge."""
    x = randn(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: activate(t, kind), x)
    norm = make_norm("rms", 6, 1e-3).double()
    norm.weight.data = randn(6)
    assert torch.autograd.gradcheck(lambda t, w: _RMSNorm.apply(t, w, 1e-3, torch.float64), (x, norm.weight))


def test_plain_activations():
    x = randn(3, 5)
    torch.testing.assert_close(activate(x, "relu"), x.clamp_min(0))
    torch.testing.assert_close(activate(x, "relu2"), x.clamp_min(0) ** 2)
    torch.testing.assert_close(activate(x, "gelu"), F.gelu(x))
    assert FeedForward(4, 3, "relu").up.weight.shape == (3, 4)


def test_feed_forward_has_no_bias():
    assert {n for n, _ in FeedForward(4, 3, "swiglu").named_parameters()} == {"up.weight", "down.weight"}


def test_compute_dtype_follows_autocast():
    x = randn(2)
    assert compute_dtype(x) == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16


def test_residual_std_keeps_the_stream_level():
    assert residual_std(toy_config(n_layer=8, init_std=0.02)) == pytest.approx(0.02 / 4)


STRETCHED = [("linear", {}), ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}), ("yarn", {})]


@pytest.mark.parametrize("kind,more", STRETCHED)
@pytest.mark.parametrize("original", [16, 4096])
def test_B5_stretched_positions_are_those_of_transformers(kind, more, original):
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig
    said = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": original}
    theirs = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=4 * original,
                         rope_parameters=said | more)
    frequencies, attention = rope.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    ours = toy_config(d_model=64, n_head=2, attention="gqa", rope_scaling=kind, rope_factor=4.0, rope_original=original)
    plain = 10000.0 ** (-torch.arange(0, 32, 2).double() / 32)
    made = layers.scaled(plain, 10000.0, kind, 4.0, original)
    torch.testing.assert_close(made.float(), frequencies, rtol=1e-6, atol=0)
    assert ours.sharpness == pytest.approx(attention ** 2)
    assert not torch.equal(made, plain)

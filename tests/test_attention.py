"""Attention against plain implementations: one document, one head, one query at a time, with the mask written out."""
import math

import pytest
import torch
from torch.nn import functional as F

import model.attention as attention_module
from model.attention import GQA, MLA, attention_bias
from model.layers import rotary_tables
from model.kernels.short_attention import BLOCK, short_causal_attention
from model.segments import Segments
from toy import toy_config, toy_model

LENGTHS = [5, 1, 9, 3]
KINDS = [{}, {"position": "alibi"}, {"position": "learned", "max_position": 99}, {"sliding_window": 1},
         {"sliding_window": 3},
         {"sliding_window": 4, "position": "alibi"}]


def turn(x, position, theta):
    """x (width,) with neighbours as complex numbers, each turned by its own angle."""
    z = torch.view_as_complex(x.view(-1, 2).contiguous())
    angles = position * theta ** (-torch.arange(0, len(x), 2, dtype=torch.float64) / len(x))
    return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten()


def mix(scores, values, i, config, slope):
    """One query at place i: scores (i + 1,), values (i + 1, d) -> (d,)."""
    seen = [j for j in range(i + 1) if config.sliding_window is None or i - config.sliding_window < j]
    if config.position == "alibi":
        scores = scores + slope * (torch.arange(i + 1, dtype=torch.float64) - i)
    return scores[seen].softmax(0) @ values[seen]


def rms(x, norm):
    return x / (x.pow(2).mean() + norm.eps).sqrt() * norm.weight


def plain_mla(layer, x, config):
    """x (L, d): one document."""
    c, out = config, []
    d_r = c.d_r if c.position == "rope" else 0
    heads = [[] for _ in range(c.n_head)]
    for i, token in enumerate(x):
        query = layer.q_up.weight @ rms(layer.q_down.weight @ token, layer.q_norm)
        down = layer.kv_down.weight @ token
        pair = (layer.kv_up.weight @ rms(down[:c.d_c], layer.kv_norm)).view(c.n_head, 2 * c.d_h)
        for h, q in enumerate(query.view(c.n_head, c.d_h + d_r)):
            k, v = pair[h, :c.d_h], pair[h, c.d_h:]
            if d_r:
                q = torch.cat((q[:c.d_h], turn(q[c.d_h:], i, c.ro_theta)))
                k = torch.cat((k, turn(down[c.d_c:], i, c.ro_theta)))
            heads[h].append((q, k, v))
    for i in range(len(x)):
        joined = []
        for h, made in enumerate(heads):
            scores = torch.stack([made[i][0] @ made[j][1] for j in range(i + 1)]) / math.sqrt(c.d_h + d_r)
            joined.append(mix(scores, torch.stack([v for _, _, v in made]), i, c, 2 ** (-8 * (h + 1) / c.n_head)))
        out.append(layer.out.weight @ torch.cat(joined))
    return torch.stack(out)


def plain_gqa(layer, x, config):
    c, out = config, []
    queries = (x @ layer.q.weight.T).view(len(x), c.n_head, c.d_h)
    keys, values = (t.view(len(x), c.kv_heads, c.d_h) for t in (x @ layer.kv.weight.T).chunk(2, -1))
    for i in range(len(x)):
        joined = []
        for h in range(c.n_head):
            g = h * c.kv_heads // c.n_head
            q, ks = queries[i, h], keys[:i + 1, g]
            if c.position == "rope":
                q, ks = turn(q, i, c.ro_theta), torch.stack([turn(k, j, c.ro_theta) for j, k in enumerate(ks)])
            joined.append(mix(ks @ q / math.sqrt(c.d_h), values[:, g], i, c, 2 ** (-8 * (h + 1) / c.n_head)))
        out.append(layer.out.weight @ torch.cat(joined))
    return torch.stack(out)


def attention(kind, **changes):
    """(layer, its config) in float64 with weights of ordinary size."""
    model = toy_model(attention=kind, n_layer=1, n_head=4, **changes)
    return model.blocks[0].attention, model.config


def run(layer, config, x, lengths):
    positions = torch.cat([torch.arange(n) for n in lengths])
    tables = rotary_tables(positions, config.rotary_width, config.ro_theta) if config.position == "rope" else None
    return layer(x, tables, Segments.from_lengths(lengths))


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("kind", ["mla", "gqa", "grouped"])
@pytest.mark.parametrize("queries", [256, 4])
def test_A7_A3_A1_attention_is_the_plain_one(kind, changes, queries, monkeypatch):
    monkeypatch.setattr(attention_module, "QUERIES", queries)
    grouped = {"n_kv_head": 2} if kind == "grouped" else {}
    layer, config = attention("mla" if kind == "mla" else "gqa", **grouped, **changes)
    x = torch.randn(sum(LENGTHS), config.d_model, dtype=torch.float64)
    plain = plain_mla if kind == "mla" else plain_gqa
    expected = torch.cat([plain(layer, part, config) for part in x.split(LENGTHS)])
    # the angles' tables are float32
    torch.testing.assert_close(run(layer, config, x, LENGTHS), expected, rtol=1e-6, atol=1e-6)


def test_A7_mla_widths_and_latent():
    layer, config = attention("mla")
    assert layer.scale == 1 / math.sqrt(config.d_h + config.d_r)
    latent, turning = layer.latents(torch.randn(6, config.d_model, dtype=torch.float64),
                                    rotary_tables(torch.arange(6), config.d_r, 1e4))
    assert latent.shape == (6, config.d_c) and turning.shape == (6, config.d_r)
    key, value = layer.expand(latent, turning)
    assert key.shape == (6, 4, config.d_h + config.d_r) and value.shape == (6, 4, config.d_h)


@pytest.mark.parametrize("kind", [MLA, GQA])
def test_A1_alibi_replaces_rotation_and_is_computed_not_stored(kind):
    config = toy_config(position="alibi", attention="mla" if kind is MLA else "gqa")
    layer = kind(config)
    assert not list(layer.buffers())
    assert layer.scale == 1 / math.sqrt(config.d_h)
    bias = attention_bias(config, 2, torch.arange(4), torch.arange(4))
    assert bias[0, 3, :].tolist() == pytest.approx([-3 / 16, -2 / 16, -1 / 16, 0])            # slope 2^-4 times j - i
    assert bias[1, 2, :3].tolist() == pytest.approx([-2 / 256, -1 / 256, 0])
    assert (bias[:, 0, 1:] == -math.inf).all()


def test_A3_window_mask():
    bias = attention_bias(toy_config(sliding_window=2), 1, torch.arange(5), torch.arange(5))[0]
    assert [[j for j in range(5) if bias[i, j] == 0] for i in range(5)] == [[0], [0, 1], [1, 2], [2, 3], [3, 4]]
    # W >= T is full
    full = attention_bias(toy_config(sliding_window=5), 1, torch.arange(5), torch.arange(5))
    assert torch.equal(full, attention_bias(toy_config(), 1, torch.arange(5), torch.arange(5)))
    # one decoded token
    late = attention_bias(toy_config(sliding_window=2), 1, torch.tensor([7]), torch.arange(8))[0]
    assert [j for j in range(8) if late[0, j] == 0] == [6, 7]


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_A5_fused_is_plain_in_float32_and_free_of_nan(kind, changes):
    layer, config = attention(kind, **changes)
    x = torch.randn(sum(LENGTHS), config.d_model, dtype=torch.float64)
    expected = run(layer, config, x, LENGTHS)
    narrow = x.float().requires_grad_()
    made = run(layer.float(), config, narrow, LENGTHS)
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()
    made.sum().backward()
    assert all(torch.isfinite(t).all() for t in [narrow.grad, *(p.grad for p in layer.parameters())])


@pytest.mark.parametrize("length", [1, 5, BLOCK, BLOCK + BLOCK // 2, BLOCK + BLOCK // 2 + 1, 2 * BLOCK + 3])
def test_A5_the_path_for_short_documents_is_torchs_attention(length):
    """Values and gradients, over the borders of its blocks of queries."""
    make = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, length, 2, width, dtype=torch.float64, generator=make).requires_grad_()
               for width in (6, 6, 4))
    short = short_causal_attention(q, k, v, 0.3)
    fused = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True,
                                           scale=0.3).transpose(1, 2)
    torch.testing.assert_close(short, fused)
    weight = torch.randn(short.shape, dtype=torch.float64, generator=make)
    for made, expected in zip(torch.autograd.grad(short, [q, k, v], weight),
                              torch.autograd.grad(fused, [q, k, v], weight)):
        torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_documents_do_not_see_each_other(kind):
    layer, config = attention(kind)
    x = torch.randn(sum(LENGTHS), config.d_model, dtype=torch.float64)
    before = run(layer, config, x, LENGTHS)
    x[5] += 1                                                                     # the one-token document
    moved = (run(layer, config, x, LENGTHS) - before).abs().amax(-1) > 0
    assert moved.nonzero().flatten().tolist() == [5]

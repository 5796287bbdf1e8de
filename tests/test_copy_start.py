"""The start that can copy: what its two heads do before any step, what it leaves alone, and when it is refused."""
import pytest
import torch

import toy
from model.layers import make_norm
from model.tiny_seek import TinySeek
from tools.config.compare import older
from tools.errors import UserError
from train_agent.trainers.data import copy_start, pair_start

CPU = torch.device("cpu")
SHAPE = {"n_layer": 2, "d_model": 160, "n_head": 4, "d_c": 64, "d_q": 80, "d_r": 8}


def stage(options, **keys):
    return toy.build_stage(options(rows=60, pair_start=4, **{**SHAPE, **keys}))


def fresh(**keys):
    """As a training makes it: float32, first values as they are."""
    torch.manual_seed(0)
    return TinySeek(toy.toy_config(**{**SHAPE, **keys})).eval()


def installed(model, vectors, heads):
    with torch.no_grad():
        for name, value in copy_start.install(model, vectors, heads, 0.3).items():
            model.get_parameter(name).copy_(value)
    return model


def started():
    """A model whose pairs say nothing: every word vector random, every table 0 but for what copies."""
    model = fresh()
    free = model.config.d_model - copy_start.spare(model.config)
    return installed(model, torch.randn(300, free), [torch.zeros(300, free) for _ in model.heads()])


def shares_of(model, index, ids, head=0):
    """Attention of one head of one block, (T, T), by hand."""
    seen = {}
    block = model.blocks[index]
    hook = block.attention.register_forward_pre_hook(lambda _, given: seen.update(x=given[0], tables=given[1]))
    model(ids)
    hook.remove()
    attention = block.attention
    q = attention.queries(seen["x"], seen["tables"])[:, head]
    k = attention.expand(*attention.latents(seen["x"], seen["tables"]))[0][:, head]
    masked = (q @ k.t() * attention.scale).masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), float("-inf"))
    return masked.softmax(-1)


def test_Q1_the_first_head_reads_the_predecessor():
    shares = shares_of(started(), 0, torch.randint(16, 300, (1, 40)))
    assert shares.diagonal(-1).min() > 0.8


def twice(length=12):
    """Different tokens, then the same again: (1, 2 * length)."""
    once = 16 + torch.randperm(300 - 16)[:length]
    return torch.cat((once, once))[None]


def test_Q1_the_second_head_finds_what_followed_the_same_token():
    torch.manual_seed(1)
    shares = shares_of(started(), 1, twice())
    found = shares[13:23].argmax(-1) == torch.arange(2, 12)
    assert found.sum() >= 9 and shares[13:23].max(-1).values.mean() > 0.6


def test_Q1_two_more_heads_find_the_same_token_and_the_same_predecessor():
    """Token 12 + n was token n before: head 1 asks for it, head 2 for what followed token n - 1; neither itself."""
    torch.manual_seed(1)
    for head in (1, 2):
        shares = shares_of(started(), 1, twice(), head)[14:24]
        assert (shares.argmax(-1) == torch.arange(2, 12)).sum() >= 9
        assert shares[range(10), range(14, 24)].mean() < 0.25


def test_Q1_what_stood_before_the_same_token_is_heard_too():
    """In the order back to front, the next token is what stood before this one: it is among the likeliest."""
    torch.manual_seed(4)
    model = started()
    once = 16 + torch.randperm(300 - 16)[:12]
    with torch.no_grad():
        logits = model(torch.cat((once, once.flip(0)))[None]).logits_1[0]
    ranks = [(logits[12 + n] > logits[12 + n, once[10 - n]]).sum().item() for n in range(1, 10)]
    assert sorted(ranks)[len(ranks) // 2] < 10


def test_Q1_what_was_said_once_is_said_again():
    """Copied without a step of training; without the start it is not."""
    def right(model):
        torch.manual_seed(2)
        with torch.no_grad():
            rows = [(model(ids).logits_1[0, 12:-1].argmax(-1) == ids[0, 13:]).float().mean() for ids in
                    (twice() for _ in range(20))]
        return sum(rows) / len(rows)
    assert right(started()) > 0.7 and right(fresh()) < 0.1


def test_Q1_the_pairs_are_known_as_well_as_before(options):
    """With random pairs head 2, and head 1 without what it copies, say what the fit in fewer dimensions says."""
    model = fresh()
    torch.manual_seed(3)
    free = model.config.d_model - copy_start.spare(model.config)
    vectors, heads = torch.randn(300, free), [torch.randn(300, free) for _ in model.heads()]
    wanted = make_norm("rms", free, 1e-6)(vectors) @ heads[1].t()
    installed(model, vectors, heads)
    found = model.norm(model.embed.weight) @ model.fc2.weight.t()
    longer = (1 + copy_start.TOLD ** 2 + copy_start.SAID ** 2) ** 0.5
    assert torch.allclose(found / longer, wanted, atol=1e-3)


def test_Q1_only_the_heads_that_copy_and_the_tables_begin_otherwise(options):
    made = stage(options)
    before = {n: p.clone() for n, p in made.model.named_parameters()}
    random_state = torch.get_rng_state()
    made.begin(CPU)
    changed = {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}
    own = {f"blocks.{i}.attention.{name}.weight" for i in (0, 1)
           for name in ("q_down", "q_up", "kv_down", "kv_up", "out")}
    assert changed == {"embed.weight", "fc1.weight", "fc2.weight"} | own
    assert torch.equal(torch.get_rng_state(), random_state)
    attention = made.model.blocks[1].attention
    other = before["blocks.1.attention.q_up.weight"].view(SHAPE["n_head"], -1, attention.q_up.in_features)[3]
    assert torch.equal(attention.q_up.weight.view(SHAPE["n_head"], -1, attention.q_up.in_features)[3], other)


def test_Q1_the_seed_decides_what_copies(options):
    def weights(seed):
        made = stage(options, seed=seed)
        made.begin(CPU)
        return made.model.blocks[1].attention.q_down.weight
    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("keys, part", [({"attention": "gqa"}, "mla"), ({"position": "alibi"}, "rope"),
                                        ({"norm": "layer"}, "rms"), ({"n_layer": 1}, "两层"),
                                        ({"d_model": 32, "n_head": 2}, "放不下"),
                                        ({"pair_start": 0}, "pair_start 0")])
def test_Q1_a_start_that_cannot_copy_is_refused_when_asked_for_and_left_out_otherwise(keys, part):
    passes = keys.get("pair_start", 4)
    model = fresh(**{k: v for k, v in keys.items() if k != "pair_start"})
    assert not copy_start.wanted(model, {"copy_start": None}, passes)
    with pytest.raises(UserError, match=part) as caught:
        copy_start.wanted(model, {"copy_start": True}, passes)
    assert caught.value.code == 2
    fine = fresh()
    assert copy_start.wanted(fine, {"copy_start": None}, 4) and not copy_start.wanted(fine, {"copy_start": False}, 4)


def test_Q1_a_run_from_before_goes_on_without_it():
    assert older({"stage": {"pair_start": 12}})["copy_start"] is False
    assert "copy_start" not in older({"stage": {"pair_start": 12, "copy_start": None}})

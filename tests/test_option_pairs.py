"""Causality, packing and decoding hold for every option of the model and for every two of them together.

`toy.OPTIONS` lists the options; a new field of ModelConfig has to appear there (a bool does so by itself) or among
toy.SIZES.
"""
from dataclasses import fields
from itertools import combinations

import pytest
import torch
import toy

from model import ModelConfig
from tools.config_manager import ConfigManager
from tools.errors import UserError

OPTIONS = toy.all_options()
PAIRS = [(a, b) for a, b in combinations(OPTIONS, 2) if not toy.excluded(OPTIONS[a], OPTIONS[b])]
CLOSE = 1e-9


def pair_of(*names):
    changes = {}
    for name in names:
        changes |= OPTIONS[name]
    return changes


def ids(rows=2, length=12, seed=0):
    return torch.randint(16, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model, seed=3, **batch):
    """Of both heads; dropout and router noise fall the same way in every call."""
    torch.manual_seed(seed)
    out = model(**batch)
    return [t for t in (out.logits_1, out.logits_2) if t is not None]


def check_causal(model, training):
    model.train(training)
    here, later = ids(), ids()
    later[:, 5:] = (later[:, 5:] - 16 + 100) % 284 + 16
    for old, new in zip(logits(model, input_ids=here), logits(model, input_ids=later)):
        assert (new[:, :5] - old[:, :5]).abs().max() < CLOSE, "a logit moved when later tokens did"
        assert (new[:, 5:] - old[:, 5:]).abs().max() > 1e-3


def check_packed(model):
    documents = toy.toy_documents()
    batch, starts = toy.pack(documents, 13)
    packed = [t.flatten(0, 1) for t in logits(model, **batch)]
    for document, start in zip(documents, starts):
        for head, alone in enumerate(logits(model, input_ids=torch.tensor([document]))):
            assert (packed[head][start:start + len(document)] - alone[0]).abs().max() < CLOSE, "packed is not unpacked"


def check_cached(model):
    read = ids(2, 16)
    full = logits(model, input_ids=read)[0]
    for absorb in (True, False):
        made = toy.decode_in_pieces(model, read, (1, 1, 7, 2, 4, 1), absorb)
        assert (made - full).abs().max() < CLOSE, f"cached is not full, absorb={absorb}"


def check(changes):
    model = toy.toy_model(**changes)
    with torch.no_grad():
        for training in (True, False):
            check_causal(model, training)
        check_packed(model)
        check_cached(model)


@pytest.mark.parametrize("name", OPTIONS)
def test_E8_every_option_alone(name):
    check(OPTIONS[name])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_E8_every_pair_of_options(pair):
    """What ModelConfig refuses it refuses by the name of one of the two."""
    changes = pair_of(*pair)
    try:
        toy.toy_config(**changes)
    except ValueError as error:
        assert any(key in str(error) for key in changes), f"refused without a name: {error}"
        return
    check(changes)


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "gradient_checkpointing"])
def test_P4_checkpointing_with_every_option(name):
    """Not only the logits: loss and gradients of a training step, noise replayed."""
    batch, _ = toy.pack(toy.toy_documents(), 13)
    labels = torch.where(batch["valid"], batch["input_ids"], -100)
    results = []
    for checkpointing in (False, True):
        model = toy.toy_model(gradient_checkpointing=checkpointing, **OPTIONS[name]).train()
        torch.manual_seed(5)
        out = model(**batch, labels_1=labels, labels_2=labels)
        out.total_loss.backward()
        results.append([out.total_loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for plain, again in zip(*results):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


def test_every_field_of_the_model_is_an_option_or_a_size():
    known = {key for changes in OPTIONS.values() for key in changes} | set(toy.SIZES)
    missing = [f.name for f in fields(ModelConfig) if f.name not in known]
    assert not missing, f"add them to toy.OPTIONS (or toy.SIZES): {missing}"


def test_the_laws_can_fail():
    """A model that peeks, one that mixes documents, one whose cache forgets: each is caught."""
    model = toy.toy_model()
    attend = model.blocks[0].attention.forward
    model.blocks[0].attention.forward = lambda x, tables, layout: attend(x, tables, layout) + x.flip(0) * 0.1
    for law in (lambda: check_causal(model, False), lambda: check_packed(model.eval()),
                lambda: check_cached(model.eval())):
        with torch.no_grad(), pytest.raises(AssertionError):
            law()


# (what is asked for together, the word by which it is refused)
REFUSED = [({"attention": "mla", "n_head": 4, "n_kv_head": 2}, "n_kv_head"),
           ({"attention": "gqa", "n_head": 4, "n_kv_head": 3}, "n_kv_head"),
           ({"d_model": 32, "n_head": 3}, "n_head"), ({"attention": "mla", "d_r": 3}, "d_r"),
           ({"attention": "gqa", "d_model": 36, "n_head": 4, "position": "rope"}, "d_model"),
           ({"keep": 9, "other_experts": 8}, "keep"),
           ({"use_moe": True, "shared_experts": 0}, "shared_experts"),
           ({"n_layer": 2, "n_dense_layer": 3}, "n_dense_layer"),
           ({"position": "learned", "max_position": 64, "max_len": 128}, "max_position")]


@pytest.mark.parametrize("together,word", REFUSED, ids=str)
def test_what_may_not_be_combined_is_refused_by_name(together, word):
    with pytest.raises(UserError, match=word) as error:
        ConfigManager({}, overrides=together, stage="pre")
    assert error.value.code == 2

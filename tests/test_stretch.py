"""Rotary positions beyond the trained length: in training, and only where a model is used."""
from argparse import Namespace

import pytest
import torch

import toy
from chat_agent.load import load, stretch_of
from model import ModelConfig, TinySeek
from tools.cli import parse
from tools.errors import UserError
from tools.saving.archive import write_torch
from train_agent.trainers.start_model import fitting_shape

YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 16}
BARE = {"format": 1, "kind": "model", "stage": "SFT", "adapter": None, "base": None, "step": 0, "metrics": {},
        "run": {}}


@pytest.fixture
def saved(tmp_path):
    vocab = toy.toy_vocab()
    torch.manual_seed(0)
    model = TinySeek(ModelConfig(vocab_size=len(vocab), **toy.SHAPE, init_std=0.2))
    payload = {**BARE, "config": model.config.to_dict(), "vocab": vocab.state(), "vocab_hash": vocab.hash,
               "weights": model.state_dict()}
    write_torch(tmp_path / "m.pkl", payload)
    return tmp_path / "m.pkl", payload


def test_B5_a_chat_stretches_a_model_that_was_trained_without(saved):
    path, payload = saved
    ids = torch.randint(16, 100, (1, 40))
    manager, options = parse(["--rope_scaling", "yarn", "--rope_factor", "4", "--rope_original", "16"],
                             only_run_keys=True, reads=("rope_scaling", "rope_factor", "rope_original"))
    assert stretch_of(options, manager.config) == YARN
    plain, stretched = (load(path, "cpu", changes)[0] for changes in (None, YARN))
    made = TinySeek(ModelConfig(**payload["config"] | YARN)).eval()
    made.load_state_dict(payload["weights"])
    assert torch.equal(made(ids).logits_1, stretched(ids).logits_1)
    assert (plain(ids).logits_1 - made(ids).logits_1).abs().max() > 1e-3
    assert toy.decode_in_pieces(stretched, ids, (20, 20)).sub(made(ids).logits_1).abs().max() < 1e-4


def test_other_model_keys_are_refused_there_as_before():
    with pytest.raises(UserError, match="不能在这里改"):
        parse(["--n_layer", "3"], only_run_keys=True, reads=("rope_scaling",))


@pytest.mark.parametrize("own, expected", [([], "yarn"), (["rope_scaling"], "none")])
def test_B5_a_stage_keeps_the_stretch_unless_told_otherwise(saved, tmp_path, own, expected):
    payload = {**saved[1], "config": saved[1]["config"] | YARN}
    options = {**toy.toy_options(tmp_path, toy.toy_vocab(), "sft"), "own_shape": own}
    assert fitting_shape(options, toy.toy_vocab(), payload).rope_scaling == expected
    assert stretch_of(Namespace(), {}) == {}

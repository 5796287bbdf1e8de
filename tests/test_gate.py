"""The gate: it reads the last user turn only, picks each sample's cheapest expert, and holds a shared base once."""
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import model.gate as gate_module
import toy
from toy import THINGS, toy_model

from model.build import attach, build, own_weights
from model.gate import Gate, GatedExperts, last_turn, padded
from model.generate import generate, generate_batch
from model.lora import apply_lora
from tools.checkpoint import load_chain, weights_hash
from tools.pictures.others import draw_confusion
from tools.errors import UserError
from tools.template import render_prompt
from train_agent.trainers import gated_training
from train_agent.trainers.dataset import Position
from train_agent.trainers.data import gate_targets
from tools.mask import last_reply

ASKS = {"a": "{}呢？", "b": "{}在哪？", "c": "说说{}。"}
REPLIES = {"a": "很好看", "b": "在河边", "c": "不见了"}
TURN = {"start": 9, "ends": [9, 10, 11, 1]}


def rows(kind, times):
    return [{
        "conversations": [{"role": "user", "content": ASKS[kind].format(thing)},
                          {"role": "assistant", "content": REPLIES[kind] * 2}]}
            for thing in THINGS * times]


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    """A base, three LoRA specialists on it, and mixed rows."""
    folder = tmp_path_factory.mktemp("gate")
    quiet = {"logging_steps": None, "save_best_model": False}
    toy.train(toy.toy_options(folder, vocab, "sft", 40, name="base", **quiet), "sft")
    base, paths = folder / "out/base/TinySeek_SFT_final.pkl", []
    for kind in ASKS:
        options = toy.toy_options(folder, vocab, "lora", rows(kind, 2), pretraining_model_path=str(base),
                                  name=f"lora_{kind}", rank=4,
                                  replay_data_path=str(folder / "none.jsonl"), max_epochs=4, init_lr=2e-2, **quiet)
        assert toy.train(options, "lora").exit == 0
        paths.append(str(folder / f"out/lora_{kind}/TinySeek_Lora_final.pkl"))
    mixed = sum([rows(kind, 2) for kind in ASKS], [])
    random.Random(0).shuffle(mixed)
    return {"folder": folder, "base": base, "paths": paths, "rows": mixed}


def gate_options(world, vocab, **keys):
    values = {"experts": world["paths"], "name": "gate", "eval_share": 0.2, "max_epochs": 6, "gate_hidden": 16,
              "batch_size": 8, "init_lr": 1e-2}
    return toy.toy_options(world["folder"], vocab, "gate", world["rows"], **{**values, **keys})


# ---------------------------------------------------------------- the module

def test_padding_and_neighbours_change_nothing():
    torch.manual_seed(0)
    gate = Gate(300, 3, 8, TURN).double().eval()
    turns = toy.toy_documents(9)
    together = gate(*padded(turns))
    for i, turn in enumerate(turns):
        assert torch.allclose(gate(*padded([turn]))[0], together[i], atol=1e-12)


def test_only_the_last_user_turn_is_read():
    gate = Gate(300, 3, 8, TURN)

    def read(ids):
        return last_turn(ids, TURN)
    dialogue = [1, 9, 12, 20, 21, 10, 12, 30, 1, 9, 12, 22, 10, 12]
    assert read(dialogue) == [12, 22] and read(dialogue[:9]) == [12, 20, 21]
    assert read([20, 21]) == [20, 21] and read([9]) == []
    assert len(gate.choose([dialogue, [9], [20]])) == 3


def test_a_mixed_batch_answers_as_each_alone():
    torch.manual_seed(0)
    experts = [toy_model(seed=s).eval() for s in range(3)]
    model = GatedExperts(Gate(300, 3, 8, TURN).double(), experts).eval()
    model.gate.embed.weight.data *= 20
    ids = torch.randint(16, 300, (12, 7))
    ids[:, 0] = 9
    with torch.no_grad():
        together = model(ids)
        picks = model.gate.choose(ids.tolist())
        assert len(set(picks)) > 1
        for i, pick in enumerate(picks):
            assert torch.allclose(together[i], experts[pick](ids[i:i + 1]).logits_1[0], atol=1e-12)
            assert model.expert_for(ids[i].tolist()) is model.experts[pick]
    replies = generate_batch(model, ids.tolist(), 5)
    assert replies == [generate(model, row, 5) for row in ids.tolist()]
    assert sorted(place for _, places in model.groups(ids.tolist()) for place in places) == list(range(12))


def test_experts_of_different_vocabularies_are_refused():
    gate = Gate(300, 2, 8, TURN)
    with pytest.raises(ValueError, match="there are 1"):
        GatedExperts(gate, [toy_model()])


def distinct_bytes(module):
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*module.parameters(), *module.buffers()]}
    return sum(seen.values())


def test_six_adapters_share_one_base():
    base = toy_model(dtype=torch.float32, n_layer=2, d_model=64, hidden=64, d_c=16, d_q=32, d_r=8)
    payload = {"kind": "model", "config": base.config.to_dict(), "weights": dict(base.state_dict())}
    chains = []
    for seed in range(6):
        torch.manual_seed(seed)
        twin = apply_lora(build([payload]), rank=2, targets="attention")
        chains.append([payload, {"kind": "adapter", "adapter": {"type": "lora", "rank": 2, "targets": ["attention"]},
                                 "weights": {n: t + torch.randn_like(t) for n, t in own_weights(twin).items()}}])
    gate = Gate(300, 6, 8, TURN)
    top = {"kind": "gate", "adapter": {"type": "gate", "vocab_size": 300, "hidden": 8, "turn": TURN},
           "weights": gate.state_dict(),
           "experts": chains}
    model, one = build([top]), distinct_bytes(base)
    assert distinct_bytes(model) < 1.3 * one
    ids = torch.randint(16, 300, (2, 5))
    assert len({round(float(expert(ids).logits_1.sum()), 6) for expert in model.experts}) == 6
    greedy = {**chains[1][1], "adapter": {"type": "memory", "tokens": 4, "chapters": 2, "topk": 1, "train_base": True}}
    free = attach(build([payload]), greedy["adapter"])
    greedy["weights"] = {n: t + 1 for n, t in own_weights(free).items()}
    before = model.experts[0].embed.weight.clone()
    mixed = build([{**top, "experts": [*chains[:5], [payload, greedy]]}])
    assert torch.equal(mixed.experts[0].embed.weight, before) and not torch.equal(mixed.experts[5].embed.weight, before)
    # Parameters are the same objects, so moving keeps them one
    moved = model.to(torch.device("cpu"))
    assert moved.experts[0].embed.weight is moved.experts[5].embed.weight
    assert distinct_bytes(
        build([{**top, "experts": [[{**c[0], "weights": {n: t.clone() for n, t in c[0]["weights"].items()}}, c[1]]
                                                      for c in chains]}])) > 5 * one     # the test can fail


# ---------------------------------------------------------------- training

def test_T5_toy_experts(world, vocab):
    options = gate_options(world, vocab, save_steps=4, eval_steps=4)
    result = gated_training.gate_train(options)["gate"]
    assert result["accuracy"] == 1.0 and result["regret"] == 0.0 and result["samples"] == 10
    assert 0 < result["regret_best_single"] <= result["regret_random"] and result["experts"] == ["lora_a", "lora_b",
        "lora_c"]
    assert np.trace(result["confusion"]) == 10 and Path(result["picture"]).stat().st_size > 5000
    made = os.listdir(world["folder"] / "out/gate")
    assert {"TinySeek_gate_final.pkl", "TinySeek_gate_best.pkl"} <= set(made)
    assert any(name.startswith("TinySeek_gate1_6_") and name.count("_") == 3 for name in made)
    payload = load_chain(world["folder"] / "out/gate/TinySeek_gate_final.pkl")[0]
    assert payload["metrics"]["eval_accuracy"] == 1.0 and payload["metrics"]["eval_regret"] == 0.0
    assert payload["adapter"]["experts"][0] == {"path": "../lora_a/TinySeek_Lora_final.pkl",
                                                "hash": weights_hash(payload["experts"][0][-1]["weights"])}


def test_the_file_knows_its_experts(world, vocab):
    path = world["folder"] / "out/gate/TinySeek_gate_final.pkl"
    if not path.exists():
        gated_training.gate_train(gate_options(world, vocab))
    chain = load_chain(path)
    assert chain[0]["experts"][0][0] is chain[0]["experts"][2][0], "the base is read once"
    model = build(chain)
    prompts = [render_prompt(row["conversations"][:1], vocab) for row in world["rows"]]
    want = ["abc".index(next(k for k, reply in REPLIES.items() if row["conversations"][1]["content"].startswith(reply)))
            for row in world["rows"]]
    assert model.gate.choose(prompts) == want
    assert generate_batch(model, prompts[:6], 6,
                          stop_ids=[1]) == [generate(model, p, 6, stop_ids=[1]) for p in prompts[:6]]


def test_losses_are_computed_once(world, vocab, monkeypatch):
    options = gate_options(world, vocab, name="once")
    first = gated_training.build_stage(options)
    monkeypatch.setattr(gated_training, "expert_losses", gated_training.expert_losses)
    monkeypatch.setattr("train_agent.trainers.data.gate_targets.scored", None)          # calling it would fail
    again = gated_training.build_stage(options)
    assert all(np.array_equal(first.train.losses[d], again.train.losses[d]) for d in first.train.losses)
    with pytest.raises(TypeError):
        gated_training.build_stage({**options, "experts": world["paths"][:2]})      # other experts, other losses


def test_losses_are_those_of_the_packed_path(world, vocab):
    """CE1 + CE2 of one sample's reply, against the model's own loss on that sample alone."""
    stage = gated_training.build_stage(gate_options(world, vocab, name="check"))
    expert = build(load_chain(world["paths"][1]))
    for document in list(stage.train.documents)[:5]:
        ids, learned = stage.train.cache.document(document)
        ids, learned = torch.from_numpy(ids)[None], torch.from_numpy(last_reply(learned))[None]
        goal = torch.where(learned, ids, -100)
        with torch.no_grad():
            out = expert(ids, labels=goal)
        assert float(out.loss) == pytest.approx(stage.train.losses[int(document)][1], abs=1e-5)


@pytest.mark.parametrize("positions", [16, 7])
def test_learned_positions_and_dialogues_longer_than_the_table(vocab, positions):
    """An expert reads as much of a long dialogue's end as it has positions for."""
    expert = toy.model_for(vocab, position="learned", max_position=positions)
    ids = np.random.default_rng(0).integers(16, len(vocab), 40)
    learned = np.zeros(40, bool)
    learned[-5:] = True

    class Cache:
        def bounds(self, documents):
            return np.zeros(len(documents), int), np.full(len(documents), 40)

        def document(self, _):
            return ids, learned
    found = gate_targets.scored(expert, Cache(), np.array([0]), 16, torch.device("cpu"), "")
    kept = torch.from_numpy(ids[-positions - 1:])[None]
    goal = torch.where(torch.arange(positions + 1) > positions - 5, kept, -100)
    with torch.no_grad():
        second = torch.nn.functional.pad(goal[:, 2:], (0, 1), value=-100)
        out = expert(kept[:, :-1], labels_1=goal[:, 1:], labels_2=second)
    assert float(found[0]) == pytest.approx(float(out.loss), abs=1e-5)


def test_the_workers_that_read_get_no_gate(world, vocab):
    """It may be on a GPU by the time that they start."""
    stage = gated_training.build_stage(gate_options(world, vocab, name="check"))
    sent = pickle.dumps(stage.train)
    assert b"model.gate" not in sent and b"torch" not in sent
    one, other = (data.batch(data_place) for data_place in [Position()] for data in (stage.train, pickle.loads(sent)))
    assert torch.equal(one.ids, other.ids) and torch.equal(one.losses, other.losses)


def test_last_reply():
    learned = np.array([0, 0, 0, 1, 1, 0, 0, 1, 1, 1], bool)
    assert last_reply(learned).tolist() == [False] * 7 + [True] * 3
    assert not last_reply(np.zeros(3, bool)).any()


def test_resume_is_bit_identical(world, vocab):
    whole = toy.train(gate_options(world, vocab, name="whole", save_steps=3), "gate")
    options = gate_options(world, vocab, name="torn", save_steps=3)
    assert toy.train(options, "gate", stop_after=8).exit == 143
    assert toy.train(options, "gate", kill_after=12).exit == -9
    again = toy.train(options, "gate")
    assert again.exit == 0 and toy.same_tensors(dict(whole.model.state_dict()), dict(again.model.state_dict()))


@pytest.mark.parametrize("change,code", [
    (lambda w: {"experts": []}, 2), (lambda w: {"experts": w["paths"][:1]}, 2),
    (lambda w: {"experts": [*w["paths"], "no/such.pkl"]}, 3),
    (lambda w: {"experts": [*w["paths"][:2], str(w["folder"] / "out/gate/TinySeek_gate_final.pkl")]}, 4)])
def test_bad_experts(world, vocab, change, code):
    if not (world["folder"] / "out/gate/TinySeek_gate_final.pkl").exists():
        gated_training.gate_train(gate_options(world, vocab))
    with pytest.raises(UserError) as error:
        gated_training.build_stage(gate_options(world, vocab, **change(world)))
    assert error.value.code == code


def test_full_models_may_be_experts(world, vocab):
    stage = gated_training.build_stage(
        gate_options(world, vocab, name="mixed", experts=[str(world["base"]), world["paths"][0]]))
    assert len(stage.about["adapter"]["experts"]) == 2 and gated_training.expert_names([str(world["base"])]) == ["base"]


def test_confusion_picture(tmp_path):
    path = draw_confusion([[8, 2], [0, 5]], ["identity", "购物"], tmp_path / "c.png")
    assert Path(path).read_bytes()[:4] == b"\x89PNG"


def test_many_turns_are_read_a_few_at_a_time(monkeypatch):
    """As in one piece; of a turn without end only the end is read."""
    torch.manual_seed(0)
    gate = gate_module.Gate(50, 3, 16, {"start": 3, "ends": [3, 1]}).eval()
    turns = [torch.randint(5, 50, (length,)).tolist() for length in (4, 30, 1, 9, 17, 2, 2000)]
    whole = gate.choose(turns)
    monkeypatch.setattr(gate_module, "TOGETHER", 2)
    assert gate.choose(turns) == whole == gate.choose([turn[-gate_module.LONGEST_TURN:] for turn in turns])

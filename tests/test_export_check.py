"""bench/export_check.py: what it calls equal is equal, and what differs is found."""
import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from bench import export_check, export_transformers                      # noqa: E402
from toy_export import hand_texts, saved, toy_payload, toy_vocab         # noqa: E402


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab()


@pytest.fixture
def path(vocab, tmp_path, monkeypatch):
    monkeypatch.setattr(export_transformers, "TOKENS", 6)
    return saved(tmp_path / "m.pkl", toy_payload(vocab)[0])


def test_a_faithful_export_passes(path):
    found = export_transformers.check(path, hand_texts()[:3], "你好")
    assert found["names_equal"] and found["round_trip"]
    assert found["equal"] + found["ties"] == found["continuations"] == 3
    # random weights: theirs may write reserved ids
    assert found["logit_difference"] < 1e-4 and found["reply"] and found["own_reply"]
    assert export_check.judge(nothing() | {"transformers": {"m": found}})[1] == []


def test_a_changed_weight_is_seen(path, monkeypatch):
    from chat_agent.exports.hf import folder

    def wrong(config, weights):
        tensors = to_hf(config, weights)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].roll(1, 0)
        return tensors
    to_hf = folder.to_hf
    monkeypatch.setattr(folder, "to_hf", wrong)
    found = export_transformers.check(path, hand_texts()[:3])
    assert found["logit_difference"] > 1 and found["differ"] == 3 and not found["round_trip"]
    assert len(export_check.judge(nothing() | {"transformers": {"m": found}})[1]) == 3


def test_tokenizer_and_template_are_compared_string_by_string(vocab, monkeypatch):
    texts = [*hand_texts()[:20], "a<|User|>b"]
    talks = [[{"role": "user", "content": "问"}, {"role": "assistant", "content": t}] for t in texts[:5]]
    found = export_check.tokenizer_check(vocab, texts)
    assert found == {"strings": 20, "marked": 1, "other_ids": 0, "other_text": 0}
    assert export_check.template_check(vocab, talks) == {"conversations": 5, "equal": 5, "forged_kept": 5}
    real = export_check.tokenizer_json

    def lesser(*words):
        body = json.loads(json.dumps(real(*words)))
        body["model"]["vocab"] = [[w, -1.0 if len(w) == 1 else s] for w, s in body["model"]["vocab"]]
        return body
    monkeypatch.setattr(export_check, "tokenizer_json", lesser)
    assert export_check.tokenizer_check(vocab, texts)["other_ids"] > 3
    assert export_check.template_check(vocab, talks)["equal"] < 5


def test_llama_figures_are_judged():
    good = {"prompts": 20, "equal": 19, "ties": 1, "same_best_token": 1.0, "positions": 9, "logit_difference": 1e-5,
            "bytes": 1}
    body = {"f32": good, "f16": good | {"equal": 3}, "q8_0": good | {"equal": 0}, "version": "0", "strings": 5,
            "other_ids": ["x"],
            "other_text": [], "talks": 2, "talks_equal": 2, "modelfile": True, "example": ["a", "b"]}
    assert export_check.judge(nothing() | {"llama": {"m": body}})[1] == []
    for wrong in ({"f32": good | {"ties": 0}}, {"talks_equal": 1}, {"modelfile": False}):
        assert len(export_check.judge(nothing() | {"llama": {"m": body | wrong}})[1]) == 1


def nothing():
    return {"transformers": {}, "tokenizer": {}, "template": {}, "llama": {}}


def test_the_same_bits_or_not(vocab):
    payload, _ = toy_payload(vocab)
    name = "blocks.0.attention.out.weight"
    assert export_transformers.same_payload(payload, payload)
    changed = payload["weights"][name].clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    assert not export_transformers.same_payload(payload | {"weights": payload["weights"] | {name: changed}}, payload)

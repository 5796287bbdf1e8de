"""--from hf: an exported folder comes back bit for bit, and nothing else comes back at all."""
import json
import shutil

import pytest
import torch

pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file                       # noqa: E402

from chat_agent import export                                            # noqa: E402
from chat_agent.exports.hf.back import read_hf                         # noqa: E402
from chat_agent.exports.hf.folder import write_hf                        # noqa: E402
from chat_agent.exports.source import read_source                        # noqa: E402
from tools.checkpoint import read_checkpoint, weights_hash               # noqa: E402
from tools.errors import UserError                                       # noqa: E402
from toy_export import SHAPES, saved, toy_payload, toy_vocab             # noqa: E402


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab()


@pytest.fixture
def folder(tmp_path, vocab):
    payload, _ = toy_payload(vocab)
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf")
    return tmp_path / "hf"


def code_of(folder):
    with pytest.raises(UserError) as caught:
        read_hf(folder)
    return caught.value.code


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_is_bit_identical(tmp_path, vocab, shape):
    payload, _ = toy_payload(vocab, **SHAPES[shape])
    path = saved(tmp_path / "m.pkl", payload)
    export.main(["--model", path, "--to", "hf", "--output", str(tmp_path / "hf")])
    export.main(["--from", "hf", str(tmp_path / "hf"), "--output", str(tmp_path / "back.pkl")])
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "back.pkl")
    assert list(before["weights"]) == list(after["weights"])
    assert weights_hash(before["weights"]) == weights_hash(after["weights"])
    assert {k: v for k, v in before.items() if k != "weights"} == {k: v for k, v in after.items() if k != "weights"}
    export.main(["--model", str(tmp_path / "back.pkl"), "--to", "hf", "--output", str(tmp_path / "hf2")])
    for file in (tmp_path / "hf").iterdir():
        assert file.read_bytes() == (tmp_path / "hf2" / file.name).read_bytes(), file.name


def test_how_a_model_wants_to_be_talked_to_survives_the_round_trip(tmp_path, vocab):
    payload, _ = toy_payload(vocab)
    talk = {"sampling": {"temperature": 0.3}, "prompts": ["苹果呢？"]}
    write_hf(read_source(saved(tmp_path / "m.pkl", {**payload, "talk": talk})), tmp_path / "hf")
    assert read_hf(tmp_path / "hf")["talk"] == talk


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_round_trip_keeps_the_stored_precision(tmp_path, vocab, dtype):
    payload, _ = toy_payload(vocab, router="sigmoid")
    payload["weights"] = {n: t.to(dtype) for n, t in payload["weights"].items()}
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf")
    assert weights_hash(read_hf(tmp_path / "hf")["weights"]) == weights_hash(payload["weights"])


def test_round_trip_of_a_split_model(tmp_path, vocab):
    payload, _ = toy_payload(vocab, size=len(vocab) + 3)
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf", shard=100_000)
    assert weights_hash(read_hf(tmp_path / "hf")["weights"]) == weights_hash(payload["weights"])


@pytest.mark.parametrize("shape", SHAPES)
def test_without_tinyseek_json_the_model_still_comes_back(tmp_path, vocab, shape):
    payload, model = toy_payload(vocab, **SHAPES[shape])
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf")
    (tmp_path / "hf" / "tinyseek.json").unlink()
    back = read_hf(tmp_path / "hf")
    assert back["vocab_hash"] == payload["vocab_hash"] and weights_hash(back["weights"]) == weights_hash(
        payload["weights"])
    again = read_source(saved(tmp_path / "back.pkl", back))
    same = type(model)(again.config)
    same.load_state_dict(again.weights, strict=True)
    ids = torch.tensor([vocab.encode("你好，小寻")])
    assert torch.equal(same.eval()(ids).logits_1, model(ids).logits_1)


@pytest.mark.parametrize("shape", ["moe_tied", "sigmoid", "llama_tied", "gpt2"])
def test_after_transformers_saved_the_folder_again(tmp_path, vocab, shape):
    transformers = pytest.importorskip("transformers")
    payload, _ = toy_payload(vocab, **(SHAPES[shape] | {"use_fc2": False}))
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        model.get_input_embeddings().weight[300] = 0.25                  # "trained further"
    model.save_pretrained(tmp_path / "again")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "again")
    back = read_hf(tmp_path / "again")
    assert back["weights"].pop("embed.weight")[300].eq(0.25).all()
    payload["weights"].pop("embed.weight")
    if "tied" in shape:
        assert back["weights"].pop("fc1.weight")[300].eq(0.25).all()
        payload["weights"].pop("fc1.weight")
    assert weights_hash(back["weights"]) == weights_hash(payload["weights"])


@pytest.mark.parametrize(
    "key, value", [("num_hidden_layers", 2), ("routed_scaling_factor", 1.0), ("norm_topk_prob", True),
                                        ("model_type", "qwen2"), ("rope_scaling", {"type": "yarn"}), ("n_group", 2),
                                        ("attention_bias", True),
                                        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
                                        ("hidden_size", None), ("vocab_size", 500)])
def test_a_changed_config_is_refused(folder, key, value):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {key: value}), encoding="utf-8")
    assert code_of(folder) == 4


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_and_damaged_files_are_refused(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    assert code_of(folder) == 3
    (folder / name).write_bytes(whole[:len(whole) // 2])
    assert code_of(folder) == 3


def test_wrong_parts_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in weights.items() if n != "lm_head.weight"}, folder / "model.safetensors")
    assert code_of(folder) == 3                                          # not what the index lists
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"][1:].clone()}, folder / "model.safetensors")
    assert code_of(folder) == 4                                          # another shape
    save_file(weights, folder / "model.safetensors")
    read_hf(folder)
    (folder / "second_head.safetensors").unlink()
    assert code_of(folder) == 4
    assert code_of(tmp_path / "nowhere") == 2


@pytest.mark.parametrize(
    "key, value", [("kind", "adapter"), ("metrics", 5), ("config", []), ("base", {}), ("step", "x"), ("format", 2)])
def test_a_changed_tinyseek_json_is_refused(folder, key, value):
    known = json.loads((folder / "tinyseek.json").read_text(encoding="utf-8"))
    (folder / "tinyseek.json").write_text(json.dumps(known | {key: value}), encoding="utf-8")
    assert code_of(folder) == 4


def test_a_foreign_tokenizer_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    found["model"]["vocab"][300], found["model"]["vocab"][301] = found["model"]["vocab"][301], found["model"]["vocab"][300]
    (folder / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")
    assert code_of(folder) == 4
    (tmp_path / "b" / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert code_of(tmp_path / "b") == 4


def test_gpt2_with_biases_is_refused(tmp_path, vocab):
    payload, _ = toy_payload(vocab, **SHAPES["gpt2"])
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["transformer.h.0.attn.c_attn.bias"][3] = 0.1
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    assert code_of(tmp_path / "hf") == 4

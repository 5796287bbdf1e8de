"""Folders of other families: what transformers computes we compute, and they go back as they came."""
import json
import shutil
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file                                   # noqa: E402

import toy_bases                                                          # noqa: E402
from chat_agent import export                                             # noqa: E402
from chat_agent.exports.bases.shapes import FAMILIES                      # noqa: E402
from chat_agent.exports.hf.folder import write_hf                         # noqa: E402
from chat_agent.exports.source import read_source                         # noqa: E402
from model.build import build                                             # noqa: E402
from model.generate import generate                                       # noqa: E402
from tools.checkpoint import read_checkpoint                              # noqa: E402
from tools.errors import UserError                                        # noqa: E402
from toy_export import compare_greedy, plain_step                         # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=toy_bases.BASES)
def base(request, tmp_path_factory):
    """(folder, the model of transformers, our checkpoint)"""
    return imported(request.param, tmp_path_factory.mktemp(request.param))


def imported(name, place, **save):
    theirs = toy_bases.base_folder(place / "folder", name, **save)
    export.main(["--from", "hf", str(place / "folder"), "--output", str(place / "base.pkl")])
    return place / "folder", theirs, place / "base.pkl"


def tensors(folder):
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def ids(rows=50, length=24):
    return torch.randint(0, 400, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_B1_logits_and_greedy_replies_are_those_of_transformers(base):
    _, theirs, path = base
    ours, expected = build([read_checkpoint(path)]), theirs(ids()).logits
    assert expected.std() > 0.1
    assert (ours(ids()).logits_1 - expected).abs().max() < 1e-4 * expected.abs().max()
    prompt = ids(1, 8)
    room = min(64, (ours.config.max_position or 99) - 8)
    out = theirs.generate(prompt, max_new_tokens=room, min_new_tokens=room, do_sample=False, eos_token_id=None,
                          pad_token_id=0)[0, 8:].tolist()
    assert compare_greedy(plain_step(ours), out, prompt[0].tolist()) in ("equal", "tie")
    assert generate(ours, prompt[0].tolist(), 8, stop_ids=(), reserved=0, guard=False) == out[:8]


def test_B1_a_folder_goes_back_as_it_came(base, tmp_path):
    folder, theirs, path = base
    export.main(["--model", str(path), "--to", "hf", "--output", str(tmp_path / "back")])
    before, after = tensors(folder), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes(), file.name
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", trust_remote_code=False).eval()
    with torch.no_grad():
        assert torch.equal(again(ids(2)).logits, theirs(ids(2)).logits)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "back").encode("苹果")
    export.main(["--from", "hf", str(tmp_path / "back"), "--output", str(tmp_path / "again.pkl")])
    one, two = read_checkpoint(path), read_checkpoint(tmp_path / "again.pkl")
    assert one["config"] == two["config"] and one["vocab_hash"] == two["vocab_hash"]


def test_B1_minimind_is_read_from_its_own_folders_and_leaves_as_llama_or_qwen3(tmp_path):
    for name, kind in (("llama2", "llama"), ("minimind", "qwen3")):
        place = tmp_path / kind
        folder, theirs, path = imported(name, place)
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
                "rms_norm_eps", "vocab_size", "tie_word_embeddings", "max_position_embeddings", "eos_token_id")
        native = {k: about[k] for k in kept if k in about} | {"model_type": "minimind", "rope_theta": 10000.0}
        (folder / "config.json").write_text(json.dumps(native), encoding="utf-8")
        export.main(["--from", "hf", str(folder), "--output", str(place / "native.pkl")])
        one, two = read_checkpoint(path), read_checkpoint(place / "native.pkl")
        assert one["config"] == two["config"]
        export.main(["--model", str(place / "native.pkl"), "--to", "hf", "--output", str(place / "back")])
        assert json.loads((place / "back/config.json").read_text(encoding="utf-8"))["model_type"] == kind
        again = transformers.AutoModelForCausalLM.from_pretrained(place / "back").eval()
        with torch.no_grad():
            torch.testing.assert_close(again(ids(2)).logits, theirs(ids(2)).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, dtype, save", [("qwen2", torch.bfloat16, {"max_shard_size": "20KB"}),
                                               ("deepseek_v3", torch.float16, {})])
def test_B1_sharded_and_half_precision_folders_keep_every_bit(tmp_path, name, dtype, save):
    folder, _, path = imported(name, tmp_path, dtype=dtype, **save)
    assert len(list(folder.glob("model*.safetensors"))) > 1 or not save
    assert {t.dtype for n, t in read_checkpoint(path)["weights"].items() if not n.endswith("router.bias")} == {dtype}
    export.main(["--model", str(path), "--to", "hf", "--output", str(tmp_path / "back")])
    before, after = tensors(folder), tensors(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_B1_older_files_are_read_too(tmp_path):
    """pytorch_model.bin, and GPT-2's names without what they are inside of."""
    folder, theirs, path = imported("gpt2", tmp_path)
    found = {n.removeprefix("transformer."): t for n, t in tensors(folder).items()}
    torch.save({**found, "h.0.attn.bias": torch.ones(1, 1, 64, 64)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    export.main(["--from", "hf", str(folder), "--output", str(tmp_path / "bin.pkl")])
    one, two = read_checkpoint(path)["weights"], read_checkpoint(tmp_path / "bin.pkl")["weights"]
    assert all(torch.equal(one[n], two[n]) for n in one)


REFUSED = [("llama2", {"model_type": "gemma2"}, "gemma2"), ("llama2", {"hidden_act": "gelu"}, "hidden_act"),
           ("llama2", {"attention_bias": True}, "attention_bias"),
           ("qwen3", {"attention_bias": True}, "attention_bias"),
           ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
           ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config"),
           ("llama2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
           ("deepseek_v3", {"n_group": 2}, "n_group"), ("deepseek_v3", {"v_head_dim": 8}, "v_head_dim"),
           ("deepseek_v2", {"q_lora_rank": None}, "q_lora_rank"), ("qwen2", {"hidden_size": None}, "hidden_size")]


def test_B1_what_is_not_supported_is_refused_by_name_before_anything_large_is_read(tmp_path):
    for name in {name for name, _, _ in REFUSED}:
        toy_bases.base_folder(tmp_path / name, name)
    for name, changes, word in REFUSED:
        folder = tmp_path / f"{name}-{word}"
        folder.mkdir()
        about = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8")) | changes
        (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")      # no weights, no tokenizer
        with pytest.raises(UserError, match=word) as error:
            export.main(["--from", "hf", str(folder), "--output", str(tmp_path / "x.pkl")])
        assert error.value.code == 4


def test_what_does_not_fit_together_is_refused_by_name(tmp_path):
    folder, _, _ = imported("qwen2", tmp_path)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**about, "num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(UserError, match="layers.2"):
        export.main(["--from", "hf", str(folder), "--output", str(tmp_path / "x.pkl")])
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="不完整") as error:
        export.main(["--from", "hf", str(folder), "--output", str(tmp_path / "x.pkl")])
    assert error.value.code == 3
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="权重"):
        export.main(["--from", "hf", str(folder), "--output", str(tmp_path / "x.pkl")])


def test_every_family_has_a_toy_folder():
    kinds = {getattr(transformers, kind)().model_type for kind, _, _ in toy_bases.BASES.values()}
    assert kinds | {"minimind"} == set(FAMILIES)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that torch makes below it and that somebody still holds; known: places of others
    that do not count."""

    def __init__(self):
        super().__init__()
        self.held, self.most, self.known = Counter(), 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                place = storage.data_ptr(), storage.nbytes()
                if place in self.known:
                    continue
                self.held[place] += 1
                weakref.finalize(tensor, self.held.subtract, [place])
                self.most = max(self.most, sum(size for (_, size), count in self.held.items() if count))
        return made


def test_B1_a_folder_is_brought_in_tensor_by_tensor(tmp_path, monkeypatch):
    """Never more than a few tensors at once, whatever is done to them: as they are, cast, tied, in one file."""
    monkeypatch.setitem(toy_bases.BASES, "deep", ("Qwen2Config", "chatml", {
        **toy_bases.BASES["qwen2"][2], "num_hidden_layers": 40}))
    folder = tmp_path / "folder"
    theirs = toy_bases.base_folder(folder, "deep", dtype=torch.bfloat16)
    sizes = [p.numel() * 2 for p in theirs.parameters()]
    for precision in ((), ("--precision", "f32")):
        target = tmp_path / f"{len(precision)}.pkl"
        with Live() as live:
            export.main(["--from", "hf", str(folder), "--output", str(target), *precision])
        assert max(sizes) <= live.most < 4 * max(sizes) < sum(sizes) / 3
        assert target.stat().st_size < (2 if precision else 1) * sum(sizes) + 200_000       # the tied one is there once
    narrow, wide = (read_checkpoint(tmp_path / f"{n}.pkl")["weights"] for n in (0, 2))
    assert all(torch.equal(narrow[n].float(), wide[n]) for n in narrow)
    assert wide["fc1.weight"].data_ptr() == wide["embed.weight"].data_ptr()


def test_B1_a_folder_is_written_without_a_second_copy_of_the_weights(tmp_path):
    """Only what stands in another order there is copied: the rows of queries and keys."""
    toy_bases.base_folder(tmp_path / "folder", "qwen2")
    export.main(["--from", "hf", str(tmp_path / "folder"), "--output", str(tmp_path / "base.pkl")])
    source = read_source(tmp_path / "base.pkl")
    stored = {n: t.untyped_storage() for n, t in source.weights.items()}
    total = sum({s.data_ptr(): s.nbytes() for s in stored.values()}.values())
    with Live() as live:
        live.known = {(s.data_ptr(), s.nbytes()) for s in stored.values()}
        write_hf(source, tmp_path / "back")
    turned = sum(t.nbytes for n, t in source.weights.items() if "attention.q" in n or "attention.kv" in n)
    assert 0 < live.most <= turned < total / 3
    before, after = (tensors(tmp_path / name) for name in ("folder", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)

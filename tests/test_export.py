"""The command: what it refuses and how, merging, plain files, and that nothing is ever half written."""
import os
import subprocess
import sys

import pytest
import torch

from chat_agent import export
from chat_agent.exports.families import family
from chat_agent.exports.folder import whole_file, whole_folder
from model import ModelConfig, TinySeek
from model.build import attach, own_weights
from tools.checkpoint import read_checkpoint, weights_hash
from tools.config_manager import ConfigManager
from tools.errors import UserError
from toy_export import GPT2, GQA, ROOT, saved, toy_payload, toy_vocab

pytest.importorskip("safetensors")
pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab()


def refused(argv, code=2):
    with pytest.raises(UserError) as caught:
        export.main([str(word) for word in argv])
    assert caught.value.code == code, str(caught.value)
    return str(caught.value)


def adapter(path, base_path, base, stage, description, fill=0.05):
    """An adapter file over `base` (payload) whose weights are not zero, and the adapted model."""
    from model.build import build
    model = build([base])
    attach(model, description)
    own = own_weights(model)
    numbers = torch.Generator().manual_seed(1)
    weights = {n: torch.randn(t.shape, generator=numbers) * fill for n, t in own.items()}
    payload = {**base, "kind": "adapter", "stage": stage, "weights": weights, "adapter": description,
               "base": {"path": base_path, "hash": weights_hash(base["weights"])}, "metrics": {"loss": 1.0}, "step": 7}
    saved(path, payload)
    return payload, build([base, payload])


@pytest.mark.parametrize("changes, word", [
    ({"position": "alibi"}, "alibi"), ({"activation": "geglu"}, "geglu"), ({"activation": "relu"}, "relu"),
    ({"norm": "layer"}, "layer"),
    ({"sliding_window": 16}, "窗口"), ({**GQA, "use_moe": True}, "MoE"), ({"norm_eps": 1e-5}, "norm_eps"),
    ({**GPT2, "n_kv_head": 2}, "n_kv_head"), ({**GPT2, "use_moe": True}, "use_moe"),
    ({**GPT2, "attention": "mla"}, "attention"),
    ({**GPT2, "activation": "relu"}, "relu"), ({"router": "sigmoid", "other_experts": 1, "keep": 1}, "2 个路由专家"),
    ({"activation": "relu2"}, "relu2"), ({**GPT2, "qk_norm": True}, "qk_norm"),
    ({**GQA, "qk_norm": True, "bias": "qkv"}, "qk_norm"),
    ({"counted": 2, "use_fc2": False}, "counted"),
])
def test_A6_what_transformers_cannot_express_is_refused_with_reason_and_way_out(tmp_path, vocab, changes, word):
    path = saved(tmp_path / "m.pkl", toy_payload(vocab, **changes)[0])
    said = refused(["--model", path, "--to", "hf", "--output", tmp_path / "hf"])
    assert word in said and "请用" in said and "重新训练" in said
    assert [p.name for p in tmp_path.iterdir()] == ["m.pkl"]


@pytest.mark.parametrize("preset, kind", [("qwen3", "qwen3"), ("minimind", "llama")])
def test_B7_presets_that_are_made_for_export(preset, kind):
    keys = ConfigManager(preset=preset).model()
    config = ModelConfig.from_dict({**keys, "vocab_size": 6000})
    assert family(config, "hf") == family(config, "gguf") == kind


@pytest.mark.parametrize("changes, word", [(GPT2, "--to hf"), ({"position": "alibi"}, "alibi"), ({"n_layer": 27}, "27"),
                                           ({"activation": "geglu"}, "geglu"), ({"sliding_window": 16}, "窗口"),
                                           ({**GQA, "bias": "qkv"}, "convert_hf_to_gguf"),
                                           ({"rope_scaling": "linear"}, "rope_scaling")])
def test_what_llama_cannot_express_is_refused(tmp_path, vocab, changes, word):
    path = saved(tmp_path / "m.pkl", toy_payload(vocab, **changes)[0])
    assert word in refused(["--model", path, "--to", "gguf", "--output", tmp_path / "m.gguf"])
    assert [p.name for p in tmp_path.iterdir()] == ["m.pkl"]


def test_a_dense_model_does_not_mind_settings_of_experts(tmp_path, vocab):
    """router, n_dense_layer and the like mean nothing where there are no experts."""
    path = saved(tmp_path / "m.pkl", toy_payload(vocab, n_dense_layer=9, router="sigmoid", other_experts=2)[0])
    export.main(["--model", path, "--to", "hf", "--output", str(tmp_path / "hf")])
    assert "DeepseekV2ForCausalLM" in (tmp_path / "hf" / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage, description, word", [
    ("Lora", {"type": "lora", "rank": 2}, "--to merged"),
    ("Prefix", {"type": "prefix", "kind": "kv", "length": 3}, "底座"),
    ("Memory", {"type": "memory", "tokens": 8, "chapters": 4, "topk": 2}, "底座")])
def test_adapters_are_refused_and_told_what_to_do(tmp_path, vocab, stage, description, word):
    base, _ = toy_payload(vocab)
    base_path = saved(tmp_path / "base.pkl", base)
    adapter(tmp_path / "a.pkl", base_path, base, stage, description)
    for kind in ("hf", "gguf"):
        said = refused(["--model", tmp_path / "a.pkl", "--to", kind, "--output", tmp_path / "x"])
        assert stage in said and word in said
    if stage != "Lora":
        assert "不能合并" in refused(["--model", tmp_path / "a.pkl", "--to", "merged", "--output", tmp_path / "x.pkl"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pkl", "base.pkl"]


@pytest.mark.parametrize("changes", [{}, {"tie_embedding": True}])
@pytest.mark.parametrize("description",
                         [{"type": "lora", "rank": 4, "targets": "all"}, {"type": "lora", "rank": 2, "alpha": 8.0},
                                         {"type": "prefix", "kind": "role", "ids": [9, 10, 11]}])
def test_merged_computes_what_base_and_adapter_compute(tmp_path, vocab, description, changes):
    base, _ = toy_payload(vocab, **changes)
    base_path = saved(tmp_path / "base.pkl", base)
    payload, together = adapter(tmp_path / "a.pkl", base_path, base, "Lora", description)
    export.main(["--model", str(tmp_path / "a.pkl"), "--to", "merged", "--output", str(tmp_path / "m.pkl")])
    found = read_checkpoint(tmp_path / "m.pkl")
    assert (found["kind"], found["stage"], found["adapter"], found["base"]) == ("model", "SFT", None, None)
    assert found["metrics"] == payload["metrics"] and found["vocab"] == base["vocab"]
    from model import ModelConfig
    model = TinySeek(ModelConfig.from_dict(found["config"]))
    model.load_state_dict(found["weights"], strict=True)
    ids = torch.tensor([[9, *vocab.encode("清晨的公园里很热闹"), 10]])
    with torch.no_grad():
        wanted, plain = together(ids), model.eval()(ids)
    assert (wanted.logits_1 - plain.logits_1).abs().max() < 1e-4 * wanted.logits_1.abs().max()
    before = TinySeek(ModelConfig.from_dict(base["config"]))
    before.load_state_dict(base["weights"])
    assert (before.eval()(ids).logits_1 - wanted.logits_1).abs().max() > 0.1
    export.main(["--model", str(tmp_path / "m.pkl"), "--to", "hf", "--output", str(tmp_path / "hf")])


def test_a_gate_is_refused(tmp_path, vocab):
    base, _ = toy_payload(vocab)
    path = saved(
        tmp_path / "g.pkl", {**base, "kind": "gate", "stage": "gate", "weights": {}, "adapter": {"experts": []}})
    for kind in ("hf", "gguf", "merged"):
        assert "专家" in refused(["--model", path, "--to", kind, "--output", tmp_path / "x"])


def test_merging_a_full_model_and_missing_or_wrong_bases(tmp_path, vocab):
    base, _ = toy_payload(vocab)
    base_path = saved(tmp_path / "base.pkl", base)
    export.main(["--model", base_path, "--to", "merged", "--output", str(tmp_path / "m")])
    assert weights_hash(read_checkpoint(tmp_path / "m.pkl")["weights"]) == weights_hash(base["weights"])
    assert "已存在" in refused(["--model", base_path, "--to", "merged", "--output", tmp_path / "m.pkl"])
    (tmp_path / "m.pkl").unlink()
    adapter(tmp_path / "a.pkl", base_path, base, "Lora", {"type": "lora", "rank": 2})
    merge = ["--model", tmp_path / "a.pkl", "--to", "merged", "--output", tmp_path / "x.pkl"]
    saved(base_path, toy_payload(vocab, seed=5)[0])
    refused(merge, 4)
    (tmp_path / "base.pkl").unlink()
    refused(merge, 3)
    refused(["--model", tmp_path / "none.pkl", "--to", "hf", "--output", tmp_path / "x"], 3)


def test_P3_plain_files_in_other_precisions(tmp_path, vocab):
    from safetensors import safe_open
    payload, _ = toy_payload(vocab, tie_embedding=True, router="sigmoid")
    path = saved(tmp_path / "m.pkl", payload)
    export.main(["--model", path, "--to", "merged", "--precision", "bf16", "--output", str(tmp_path / "half.pkl")])
    half = read_checkpoint(tmp_path / "half.pkl")["weights"]
    assert {t.dtype for n, t in half.items() if not n.endswith("router.bias")} == {torch.bfloat16}
    export.main(["--model", path, "--to", "safetensors", "--output", str(tmp_path / "w.safetensors")])
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert {n: True for n in file.keys()} == {n: torch.equal(file.get_tensor(n), t)
                                                  for n, t in payload["weights"].items()}
        assert file.metadata()["vocab_hash"] == vocab.hash


@pytest.mark.parametrize("argv, word", [
    (["--to", "hf", "--output", "x"], "--model"), (["--model", "m", "--output", "x"], "--to"),
    (["--model", "m", "--to", "hf"], "--output"),
    (["--from", "hf", "d", "--to", "hf", "--output", "x"], "选一"), (["--from", "gguf", "d", "--output", "x"], "--from"),
    (["--from", "hf", "d", "--model", "m", "--output", "x"], "--model"),
    (["--to", "onnx", "--model", "m", "--output", "x"], "onnx"),
    (["--model", "m", "--to", "gguf", "--precision", "bf16", "--output", "x"], "bf16"),
    (["--model", "m", "--to", "hf", "--precision", "q8_0", "--output", "x"], "q8_0"),
    (["--model", "m", "--to", "hf", "--output", "x", "--n_layer", "3"], "n_layer"),
])
def test_wrong_commands_are_explained(argv, word):
    assert word in refused(argv)


def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path, vocab):
    def export_of(**changes):
        payload, _ = toy_payload(vocab)
        return refused(
            ["--model", saved(tmp_path / "m.pkl", {**payload, **changes}), "--to", "hf", "--output", tmp_path / "hf"],
            4)
    payload, _ = toy_payload(vocab)
    assert "哈希" in export_of(vocab_hash="00")
    assert "fc1.weight" in export_of(weights={n: t for n, t in payload["weights"].items() if n != "fc1.weight"})
    assert "norm.weight" in export_of(weights=payload["weights"] | {"norm.weight": torch.ones(3)})
    assert "colour" in export_of(config=payload["config"] | {"colour": 1})
    untied = {**payload["config"], "tie_embedding": True}
    assert "tie_embedding" in export_of(config=untied)
    small, _ = toy_payload(vocab, size=len(vocab) - 1)
    assert "行" in export_of(config=small["config"], weights=small["weights"])
    assert not (tmp_path / "hf").exists()


def test_an_earlier_export_is_replaced_and_foreign_files_never(tmp_path, vocab):
    path = saved(tmp_path / "m.pkl", toy_payload(vocab)[0])
    out = tmp_path / "hf"
    command = ["--model", path, "--to", "hf", "--output", str(out)]
    export.main(command)
    export.main(command)
    saved(tmp_path / "m.pkl", toy_payload(vocab, use_fc2=False)[0])
    export.main(command)
    assert not (out / "second_head.safetensors").exists()               # nothing of the old export stays behind
    (out / "thesis.docx").write_text("x")
    assert "thesis.docx" in refused(command)
    assert (out / "thesis.docx").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["hf", "m.pkl"]
    assert "文件夹" in refused(["--model", path, "--to", "hf", "--output", path])
    assert ".pkl" in refused(["--model", path, "--to", "merged", "--output", out])


def test_what_systems_and_git_leave_in_a_folder_is_no_hindrance_and_stays(tmp_path, vocab):
    path, out = saved(tmp_path / "m.pkl", toy_payload(vocab)[0]), tmp_path / "hf"
    command = ["--model", path, "--to", "hf", "--output", str(out)]
    export.main(command)
    (out / ".git").mkdir()
    for name in (".DS_Store", "desktop.ini", "Thumbs.db", ".gitattributes", "._config.json", ".git/HEAD"):
        (out / name).write_text(name)
    (out / "config.json").write_text("old")
    export.main(command)
    assert (out / ".git" / "HEAD").read_text() == ".git/HEAD" and (out / ".DS_Store").exists() and (out
        / "._config.json").exists()
    assert (out / "config.json").read_text() != "old" and sorted(p.name for p in tmp_path.iterdir()) == ["hf", "m.pkl"]


def test_a_model_of_somebody_else_is_never_replaced(tmp_path, vocab):
    """Its files have the names of ours."""
    path, out = saved(tmp_path / "m.pkl", toy_payload(vocab)[0]), tmp_path / "other"
    out.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (out / name).write_text("theirs")
    refused(["--model", path, "--to", "hf", "--output", out])
    assert all(p.read_text() == "theirs" for p in out.iterdir())
    for kind, name in (("gguf", "x.gguf"), ("safetensors", "x.safetensors"), ("merged", "x.pkl")):
        place = tmp_path / name
        place.write_text("theirs")
        assert "不会覆盖" in refused(["--model", path, "--to", kind, "--output", place]) or kind == "merged"
        assert place.read_text() == "theirs"
        place.unlink()
        export.main(["--model", path, "--to", kind, "--output", str(place)])
        if kind != "merged":
            export.main(["--model", path, "--to", kind, "--output", str(place)])


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_exported_files_can_be_read_by_others(tmp_path, vocab):
    path = saved(tmp_path / "m.pkl", toy_payload(vocab)[0])
    before = os.umask(0o022)
    try:
        for kind, name in (("hf", "hf"), ("gguf", "g/x.gguf"), ("safetensors", "s/x.safetensors"),
                           ("merged", "p/x.pkl")):
            export.main(["--model", path, "--to", kind, "--output", str(tmp_path / name)])
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "m.pkl"]
    assert len(files) >= 12 and {p.stat().st_mode & 0o777 for p in files} == {0o644}


def test_the_command_for_ollama_works_from_where_one_is(tmp_path, vocab, capsys):
    path, out = saved(tmp_path / "m.pkl", toy_payload(vocab)[0]), tmp_path / "g" / "x.gguf"
    export.main(["--model", path, "--to", "gguf", "--output", str(out)])
    assert f"ollama create tinyseek -f {out.with_name('Modelfile')}" in capsys.readouterr().out


def test_nothing_half_written_stays(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("old")
    with pytest.raises(RuntimeError):
        with whole_folder(tmp_path / "a", lambda name: True, "config.json") as folder:
            (folder / "config.json").write_text("new")
            raise RuntimeError
    assert (tmp_path / "a" / "config.json").read_text() == "old"
    with pytest.raises(UserError) as caught:
        with whole_file(tmp_path / "b.gguf") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")
    assert caught.value.code == 7 and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_without_the_extras_the_message_says_how_to_get_them(tmp_path, vocab, monkeypatch):
    path = saved(tmp_path / "m.pkl", toy_payload(vocab)[0])
    for module, kind in (("safetensors.torch", "hf"), ("gguf", "gguf"), ("safetensors.torch", "safetensors")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            said = refused(["--model", path, "--to", kind, "--output", tmp_path / "x"])
            assert "requirements-export.txt" in said and module.split(".")[0] in said
    assert [p.name for p in tmp_path.iterdir()] == ["m.pkl"]


def test_as_a_script_and_as_a_module_from_another_folder(tmp_path, vocab):
    saved(tmp_path / "模型 一.pkl", toy_payload(vocab)[0])
    script = [sys.executable, str(ROOT / "chat_agent" / "export.py")]
    done = subprocess.run([*script, "--model", "模型 一.pkl", "--to", "hf", "--output", "导 出"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    back = ["--from", "hf", str(tmp_path / "导 出"), "--output", str(tmp_path / "b.pkl")]
    done = subprocess.run([sys.executable, "-m", "chat_agent.export", *back], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "b.pkl").exists(), done.stderr
    done = subprocess.run([*script, "--to", "hf"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("错误：")


@pytest.mark.parametrize("mode, stage", [("instruction_finetuning", "SFT"), ("pretraining", "Pre")])
def test_a_pre_trained_model_that_an_adapter_taught_to_talk_talks(tmp_path, vocab, mode, stage):
    base, _ = toy_payload(vocab)
    base["stage"] = "Pre"
    base_path = saved(tmp_path / "base.pkl", base)
    payload, _ = adapter(tmp_path / "a.pkl", base_path, base, "Lora", {"type": "lora", "rank": 2})
    saved(tmp_path / "a.pkl", {**payload, "run": {**payload["run"], "training_mode": mode}})
    export.main(["--model", str(tmp_path / "a.pkl"), "--to", "merged", "--output", str(tmp_path / "m.pkl")])
    assert read_checkpoint(tmp_path / "m.pkl")["stage"] == stage

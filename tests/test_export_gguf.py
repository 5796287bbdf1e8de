"""GGUF files, read back: every tensor, every setting, the tokens, the Modelfile."""
import re

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")

from chat_agent import export                                            # noqa: E402
from chat_agent.exports.gguf.file import SCORE_LIMIT, write_gguf         # noqa: E402
from chat_agent.exports.gguf.tensors import parts                        # noqa: E402
from chat_agent.exports.hf.weights import to_hf                          # noqa: E402
from chat_agent.exports.hf.tokenizer import pieces                       # noqa: E402
from chat_agent.exports.parts import to_ours                             # noqa: E402
from chat_agent.exports.source import read_source                        # noqa: E402
from tools.errors import UserError                                       # noqa: E402
from tools.template import render_prompt                                 # noqa: E402
from tools.vocab import Vocab                                            # noqa: E402
from toy_export import SHAPES, saved, toy_payload, toy_vocab             # noqa: E402

HF_ONLY = ("gpt2", "qwen2", "mistral", "mla_yarn")
SHAPES = {name: shape for name, shape in SHAPES.items() if not name.startswith(HF_ONLY)}
Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab()


def written(tmp_path, vocab, precision="f32", **changes):
    payload, model = toy_payload(vocab, **changes)
    path, kept = write_gguf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "m.gguf", precision)
    return payload["weights"], model.config, gguf.GGUFReader(path), kept


def values(reader):
    """{name: float32 tensor as it comes out of the file}."""
    found = {}
    for t in reader.tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        found[t.name] = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).reshape(shape).copy())
    return found


def setting(reader, name):
    return reader.fields[name].contents()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_comes_back_exactly(tmp_path, vocab, shape):
    weights, config, reader, _ = written(tmp_path, vocab, **SHAPES[shape])
    back = to_ours(parts(config), values(reader))
    assert set(back) == set(weights) - {"fc2.weight"}
    for name, tensor in back.items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_those_of_the_architecture(tmp_path, vocab, shape):
    _, config, reader, _ = written(tmp_path, vocab, **SHAPES[shape])
    architecture = setting(reader, "general.architecture")
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}
    for t in reader.tensors:
        name = re.sub(r"\.(weight|bias)$", "", re.sub(r"blk\.\d+\.", "blk.{bid}.", t.name))
        assert name in known, t.name
    assert architecture == (shape.split("_")[0] if config.attention == "gqa" else "deepseek2")


@pytest.mark.parametrize("shape", ["qwen3", "qwen3_wide"])
def test_B7_a_qwen3_file_is_what_llamas_own_converter_makes_of_the_folder(tmp_path, vocab, shape):
    """It renames the tensors of a Qwen3ForCausalLM by its own table and changes none; a tied head is left out."""
    weights, config, reader, _ = written(tmp_path, vocab, **SHAPES[shape])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layer)
    theirs = {table.get_name(name, (".weight", ".bias")): t for name, t in to_hf(config, weights).items()}
    found = values(reader)
    assert found.keys() - theirs.keys() == ({"output.weight"} if config.tie_embedding else set())
    assert theirs and all(torch.equal(found[name], tensor) for name, tensor in theirs.items())
    wanted = {"attention.key_length": config.d_h, "attention.value_length": config.d_h, "attention.head_count": 4,
              "attention.head_count_kv": 2, "feed_forward_length": 80, "rope.freq_base": 10000.0}
    assert {k: setting(reader, f"qwen3.{k}") for k in wanted} == wanted


@pytest.mark.parametrize("shape", ["moe", "sigmoid", "llama"])
def test_f16_and_q8_0_are_rounded_and_nothing_else(tmp_path, vocab, shape):
    weights, config, reader, _ = written(tmp_path, vocab, "f16", **SHAPES[shape])
    for name, tensor in to_ours(parts(config), values(reader)).items():
        exact = tensor.dim() == 1 or "router" in name
        assert torch.equal(tensor, weights[name] if exact else weights[name].half().float()), name
    weights, config, reader, kept = written(tmp_path, vocab, "q8_0", **SHAPES[shape])
    wide = {t.name for t in reader.tensors if t.tensor_type == Q8_0}
    assert "token_embd.weight" in wide and "blk.0.attn_norm.weight" not in wide
    for t in reader.tensors:
        if t.tensor_type == Q8_0:
            assert t.shape[0] % 32 == 0
        if t.name in kept:
            assert t.tensor_type == gguf.GGMLQuantizationType.F16 and t.shape[0] % 32
    for name, tensor in to_ours(parts(config), values(reader)).items():
        # its float16 rounding shifts the ends by another 6 %
        step = weights[name].abs().max() / 127
        assert (tensor - weights[name]).abs().max() <= step * 0.57, name


def test_settings_of_a_deepseek_model(tmp_path, vocab):
    _, c, reader, _ = written(tmp_path, vocab, router="sigmoid", norm_eps=1e-5)
    wanted = {"block_count": 3, "context_length": 128, "embedding_length": 64, "feed_forward_length": 80,
              "attention.head_count": 4,
              "attention.head_count_kv": 1, "attention.q_lora_rank": 40, "attention.kv_lora_rank": 32,
              "attention.key_length": 40,
              "attention.value_length": 32, "attention.key_length_mla": 24, "attention.value_length_mla": 16,
              "leading_dense_block_count": 1, "expert_count": 6, "expert_used_count": 2, "expert_shared_count": 2,
              "expert_feed_forward_length": 48, "expert_weights_norm": True, "expert_gating_func": 2,
              "rope.dimension_count": 8,
              "vocab_size": c.vocab_size}
    assert {k: setting(reader, f"deepseek2.{k}") for k in wanted} == wanted
    assert setting(reader, "deepseek2.expert_weights_scale") == 1.5
    assert setting(reader, "deepseek2.rope.freq_base") == 10000.0
    assert setting(reader, "deepseek2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)


def test_tokens_scores_and_types(tmp_path, vocab):
    _, c, reader, _ = written(tmp_path, vocab, size=len(vocab) + 2)
    entries = pieces(vocab, c.vocab_size)
    assert setting(reader, "tokenizer.ggml.tokens") == [name for name, _ in entries]
    scores = np.array(setting(reader, "tokenizer.ggml.scores"), dtype=np.float32).astype(np.float64)
    whole = np.round(scores * 1e4).astype(np.int64)                      # what llama.cpp makes of them
    words = slice(272, len(vocab))
    assert whole[words].tolist() == vocab.scores
    assert (whole[:272] < -20_000_000).all() and (whole[len(vocab):] < -20_000_000).all()     # never matched in text
    types = np.array(setting(reader, "tokenizer.ggml.token_type"))
    T = gguf.TokenType
    assert types[3] == T.UNKNOWN and types[9] == types[-1] == T.CONTROL
    assert (types[16:272] == T.BYTE).all() and (types[words] == T.NORMAL).all()
    assert setting(reader, "tokenizer.ggml.eos_token_id") == 1 and setting(reader,
        "tokenizer.ggml.add_bos_token") is False


def test_scores_beyond_what_llama_can_tell_apart_are_refused(tmp_path, vocab):
    scores = [*vocab.scores[:-1], -SCORE_LIMIT]
    odd = Vocab.from_words(vocab.words, scores, vocab.token_kind)
    with pytest.raises(UserError) as caught:
        written(tmp_path, odd)
    assert caught.value.code == 2 and not list(tmp_path.glob("*.gguf"))


def test_weights_beyond_f16_are_refused(tmp_path, vocab):
    payload, _ = toy_payload(vocab)
    payload["weights"]["blocks.0.mlp.up.weight"][0, 0] = 1e6
    source = read_source(saved(tmp_path / "m.pkl", payload))
    with pytest.raises(UserError) as caught:
        write_gguf(source, tmp_path / "m.gguf", "f16")
    assert caught.value.code == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["m.pkl"]
    write_gguf(source, tmp_path / "m.gguf", "f32")


def test_modelfile_and_second_head_lie_beside(tmp_path, vocab, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    payload, _ = toy_payload(vocab)
    path = saved(tmp_path / "m.pkl", payload)
    export.main(["--model", path, "--to", "gguf", "--precision", "q8_0", "--output", str(tmp_path / "g")])
    said = capsys.readouterr().out
    wanted = ["Modelfile", "TinySeek-q8_0.gguf", "TinySeek-q8_0.second_head.safetensors"]
    assert sorted(p.name for p in (tmp_path / "g").iterdir()) == wanted
    assert "second_head" in said and "保持 f16" in said and "ollama create" in said
    found = safetensors.load_file(tmp_path / "g" / "TinySeek-q8_0.second_head.safetensors")
    assert torch.equal(found["fc2.weight"], payload["weights"]["fc2.weight"])
    lines = (tmp_path / "g" / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./TinySeek-q8_0.gguf\n" in lines and "PARAMETER num_ctx 128\n" in lines
    # ours: replaced
    export.main(["--model", path, "--to", "gguf", "--output", str(tmp_path / "g" / "x.gguf")])
    assert "FROM ./x.gguf\n" in (tmp_path / "g" / "Modelfile").read_text(encoding="utf-8")
    (tmp_path / "g" / "Modelfile").write_text("FROM somebody\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        export.main(["--model", path, "--to", "gguf", "--output", str(tmp_path / "g" / "y.gguf")])
    assert caught.value.code == 2 and not (tmp_path / "g" / "y.gguf").exists()


def test_modelfile_writes_our_dialogue(tmp_path, vocab):
    """The Go template, filled in by hand for one conversation, is the text of our prompt."""
    from chat_agent.exports.gguf.modelfile import write_modelfile
    payload, _ = toy_payload(vocab)
    write_modelfile(tmp_path / "m.gguf", read_source(saved(tmp_path / "m.pkl", payload)))
    template = re.search(r'TEMPLATE """(.*)"""', (tmp_path / "Modelfile").read_text(encoding="utf-8")).group(1)
    before, loop, after = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*?)",
                                       template).groups()
    branches = dict(
        zip(re.findall(r'eq \.Role "(\w+)"', loop), re.split(r"\{\{ (?:else )?if eq \.Role \"\w+\" \}\}", loop)[1:]))
    talk = [{"role": "system", "content": "甲"}, {"role": "user", "content": "乙"}, {"role": "assistant", "content": "丙"},
            {"role": "tool", "content": "戊"}, {"role": "user", "content": "丁"}]
    text = before + "".join(branches[m["role"]].replace("{{ .Content }}", m["content"]) for m in talk) + after
    tokenizers = pytest.importorskip("tokenizers")
    import json

    from chat_agent.exports.hf.tokenizer import tokenizer_json
    ids = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(vocab, len(vocab)))).encode(text).ids
    assert ids == render_prompt(talk, vocab)

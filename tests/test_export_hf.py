"""Exported folders: transformers computes what we compute."""
import json

import pytest
import torch

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")

from safetensors import safe_open                                        # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from chat_agent import export                                            # noqa: E402
from chat_agent.exports.hf.folder import write_hf                        # noqa: E402
from chat_agent.exports.source import read_source                        # noqa: E402
from toy_export import SHAPES, SHARED, compare_greedy, hand_texts, plain_step, rows_of, saved, toy_payload, toy_vocab  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab()


def exported(tmp_path, vocab, precision=(), **changes):
    payload, model = toy_payload(vocab, **changes)
    path = saved(tmp_path / "m.pkl", payload)
    export.main(["--model", path, "--to", "hf", "--output", str(tmp_path / "hf"), *precision])
    return payload, model, tmp_path / "hf"


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()


@torch.no_grad()
def differences(model, theirs, rows):
    """Largest absolute difference of the logits on each row of ids, and their spread."""
    found, spread = [], []
    for ids in rows:
        ours = model(torch.tensor([ids])).logits_1
        found.append(float((theirs(torch.tensor([ids])).logits - ours).abs().max()))
        spread.append(float(ours.std()))
    return max(found), sum(spread) / len(spread)


def prompts(vocab, count, length=100):
    texts = rows_of("text.jsonl", count) if SHARED.exists() else hand_texts()[:count]
    end = vocab.id("<|im_end|>")
    return [[end, *vocab.encode(text)[:length]] for text in texts]


@pytest.mark.parametrize("shape", SHAPES)
def test_A6_logits_equal_those_of_transformers(tmp_path, vocab, shape):
    _, model, folder = exported(tmp_path, vocab, **SHAPES[shape])
    worst, spread = differences(model, load(folder, dtype=torch.float32), prompts(vocab, 10))
    print(f"{shape}: worst {worst:.2e}, spread of the logits {spread:.2f}")
    assert spread > 1                                       # flat logits would prove nothing
    assert worst < 1e-4


@pytest.mark.parametrize("shape", ["moe", "dense_tied", "llama", "qwen3", "gpt2"])
def test_greedy_replies_equal_those_of_transformers(tmp_path, vocab, shape):
    _, model, folder = exported(tmp_path, vocab, **SHAPES[shape])
    theirs, step = load(folder), plain_step(model)
    for ids in prompts(vocab, 2, 12):
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=16, min_new_tokens=16, do_sample=False,
                              eos_token_id=None)
        assert compare_greedy(step, out[0, len(ids):].tolist(), ids) == "equal"


@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_shapes_are_those_that_transformers_writes(tmp_path, vocab, shape):
    _, _, folder = exported(tmp_path, vocab, **SHAPES[shape])
    load(folder).save_pretrained(tmp_path / "again")

    def listed(place):
        with safe_open(place / "model.safetensors", "pt") as file:
            return {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype())
                    for name in file.keys()}, file.metadata()
    assert listed(folder) == listed(tmp_path / "again")


def test_class_exists_and_needs_no_remote_code(tmp_path, vocab):
    classes = {}
    for shape in ("moe", "dense", "sigmoid", "llama", "qwen3", "gpt2"):
        (tmp_path / shape).mkdir()
        _, _, folder = exported(tmp_path / shape, vocab, **SHAPES[shape])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert "auto_map" not in config and not list(folder.glob("*.py"))
        classes[shape] = type(load(folder)).__name__
        assert config["architectures"] == [classes[shape]]
    assert classes == {"moe": "DeepseekV2ForCausalLM", "dense": "DeepseekV2ForCausalLM",
                       "sigmoid": "DeepseekV3ForCausalLM",
                       "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel"}


def test_second_head_lies_in_a_file_of_its_own_and_is_announced(tmp_path, vocab, capsys):
    payload, _, folder = exported(tmp_path, vocab)
    assert "second_head.safetensors" in capsys.readouterr().out
    with safe_open(folder / "second_head.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("fc2.weight"), payload["weights"]["fc2.weight"])
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert "fc2.weight" not in index["weight_map"] and set(index["weight_map"].values()) == {"model.safetensors"}
    (tmp_path / "one").mkdir()
    _, _, single = exported(tmp_path / "one", vocab, use_fc2=False)
    assert not (single / "second_head.safetensors").exists()
    assert "第二个" not in capsys.readouterr().out


def test_a_large_model_is_split(tmp_path, vocab):
    payload, model = toy_payload(vocab)
    write_hf(read_source(saved(tmp_path / "m.pkl", payload)), tmp_path / "hf", shard=200_000)
    files = sorted(tmp_path.glob("hf/model-*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert not (tmp_path / "hf" / "model.safetensors").exists()
    assert differences(model, load(tmp_path / "hf"), prompts(vocab, 2))[0] < 1e-4


@pytest.mark.parametrize("precision, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_P3_precision_of_what_is_exported(tmp_path, vocab, precision, dtype):
    payload, _, folder = exported(tmp_path, vocab, ["--precision", precision], router="sigmoid")
    model = load(folder)
    assert model.dtype == dtype
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():
            bias = name.endswith("e_score_correction_bias")          # decides the choice of experts: stays exact
            assert file.get_tensor(name).dtype == (torch.float32 if bias else dtype)
    assert torch.equal(model.lm_head.weight, payload["weights"]["fc1.weight"].to(dtype))


def test_P3_save_precision_is_the_long_name_of_the_same_option(tmp_path, vocab):
    _, _, folder = exported(tmp_path, vocab, ["--save_precision", "bf16"])
    assert load(folder).dtype == torch.bfloat16


def test_ids_beyond_the_vocabulary_are_special_tokens(tmp_path, vocab):
    payload, model, folder = exported(tmp_path, vocab, size=len(vocab) + 3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == AutoConfig.from_pretrained(folder).vocab_size
    assert tokenizer.decode([len(vocab)], skip_special_tokens=True) == ""


def test_model_card_has_the_figures_of_the_training(tmp_path, vocab):
    _, model, folder = exported(tmp_path, vocab)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "DeepseekV2ForCausalLM" in card
    for part in ("| 优化步数 | 1234 |", "| bpc | 1.23457 |", "| best | step 1000 |", "指令微调", "second_head.safetensors"):
        assert part in card
    own = sum(p.numel() for n, p in model.named_parameters() if n != "fc2.weight")
    assert f"| {own:,} |" in card


def test_generation_ends_at_the_end_of_a_reply(tmp_path, vocab):
    _, _, folder = exported(tmp_path, vocab)
    settings = load(folder).generation_config
    assert settings.eos_token_id == vocab.id("<|im_end|>") and settings.pad_token_id == vocab.id("[PAD]")


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_fifty_rows_and_64_tokens(tmp_path, vocab, shape):
    if not SHARED.exists():
        pytest.skip("../shared/data is not there")
    _, model, folder = exported(tmp_path, vocab, **SHAPES[shape])
    theirs, step = load(folder), plain_step(model)
    rows = prompts(vocab, 50, 140)
    worst, spread = differences(model, theirs, rows)
    results = []
    for ids in rows:
        out = theirs.generate(torch.tensor([ids[:24]]), max_new_tokens=64, min_new_tokens=64, do_sample=False,
                              eos_token_id=None)
        results.append(compare_greedy(step, out[0, len(ids[:24]):].tolist(), ids[:24]))
    print(
        f"{shape}: worst {worst:.2e}, spread {spread:.2f}, equal {results.count('equal')}, tie {results.count('tie')} "
        f"of 50")
    assert worst < 1e-4 and spread > 1
    assert set(results) <= {"equal", "tie"} and results.count("tie") <= 1

"""Folders that somebody spoiled are refused by what is wrong; those that are only odd are read as they were meant."""
import codecs
import json
import shutil

import pytest
import torch

pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file                        # noqa: E402

import toy_bases                                                          # noqa: E402
from chat_agent import export                                             # noqa: E402
from chat_agent.exports.bases import tensors                              # noqa: E402
from tools.checkpoint import read_checkpoint                              # noqa: E402
from tools.errors import UserError                                        # noqa: E402
from tools.vocab import Vocab                                             # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SPOILED = [("config.json", {"vocab_size": "12"}, "vocab_size", 4),
           ("config.json", {"num_hidden_layers": 2.0}, "num_hidden_layers", 4),
           ("config.json", {"num_attention_heads": 0}, "config.json", 4),
           ("config.json", {"tie_word_embeddings": "true"}, "tie_word_embeddings", 4),
           ("config.json", {"max_position_embeddings": "x"}, "max_position_embeddings", 4),
           ("config.json", {"rope_scaling": "yarn"}, "rope_scaling", 4),
           ("tokenizer.json", {"version": "9.0"}, "词表", 3),
           ("tokenizer.json", {"model": {"type": "Foo"}}, "词表", 3),
           ("tokenizer.json", {"normalizer": {"type": "Foo"}}, "词表", 3),
           ("model.safetensors.index.json", {"weight_map": {"model.norm.weight": "model-9.safetensors"}}, "找不到", 3)]
HARMLESS = [("config.json", {"torch_dtype": "float32", "auto_map": {"AutoModel": "a.b"}}),
            ("tokenizer_config.json", {"eos_token": ["a"], "chat_template": "{% for i in range(10**9) %}{% endfor %}"})]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("一个 文件夹") / "Qwen 2.5"
    toy_bases.base_folder(folder, "qwen2", dtype=torch.bfloat16, max_shard_size="20KB")
    return folder


def changed(folder, target, file, keys):
    shutil.copytree(folder, target)
    found = json.loads((target / file).read_text(encoding="utf-8")) | keys
    (target / file).write_text(json.dumps(found), encoding="utf-8")
    return ["--from", "hf", str(target), "--output", str(target.parent / "新 的.pkl")]


@pytest.mark.parametrize("file, keys, word, code", SPOILED)
def test_a_spoiled_folder_is_refused_by_what_is_wrong_with_it(sharded, tmp_path, file, keys, word, code):
    with pytest.raises(UserError, match=word) as error:
        export.main(changed(sharded, tmp_path / "下载 的", file, keys))
    assert error.value.code == code and not list(tmp_path.glob("*.pkl"))


@pytest.mark.parametrize("file, keys", HARMLESS)
def test_what_says_nothing_about_the_numbers_changes_nothing(sharded, tmp_path, file, keys):
    """Keys that nobody reads, a dtype that is not the files', a template that cannot be asked."""
    export.main(changed(sharded, tmp_path / "下载 的", file, keys))
    weights = read_checkpoint(tmp_path / "新 的.pkl")["weights"]
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\0" * 99])
def test_a_shard_that_is_none_is_refused(sharded, tmp_path, content):
    words = changed(sharded, tmp_path / "broken", "config.json", {})
    sorted((tmp_path / "broken").glob("model-*.safetensors"))[1].write_bytes(content)
    with pytest.raises(UserError, match="model-00002.*重新下载") as error:
        export.main(words)
    assert error.value.code == 3


@pytest.mark.parametrize("found", [[1], {"state_dict": {}}, {"x": torch.ones(2, dtype=torch.int8)}])
def test_an_older_file_that_holds_no_weights_is_refused(sharded, tmp_path, found):
    words = changed(sharded, tmp_path / "old", "config.json", {})
    for file in (tmp_path / "old").glob("model*"):
        file.unlink()
    torch.save(found, tmp_path / "old/pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin") as error:
        export.main(words)
    assert error.value.code == 4


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_number_that_is_none_is_named(sharded, tmp_path, kind, value):
    words = changed(sharded, tmp_path / "sick", "config.json", {})
    shard = sorted((tmp_path / "sick").glob("model-*.safetensors"))[1]
    found = load_file(shard)
    sick = next(name for name in found if name.endswith("k_proj.weight"))
    found[sick][1, 1] = value
    save_file(found, shard, {"format": "pt"})
    if kind == "bin":
        every = {name: t for file in (tmp_path / "sick").glob("model-*") for name, t in load_file(file).items()}
        torch.save(every, tmp_path / "sick/pytorch_model.bin")
        for file in (tmp_path / "sick").glob("model*"):
            file.unlink()
    with pytest.raises(UserError, match=f"{sick} 有 NaN 或无穷大") as error:
        export.main(words)
    assert error.value.code == 3 and not list(tmp_path.glob("*.pkl"))


def test_an_index_that_says_what_its_files_do_not_hold_is_refused(sharded, tmp_path):
    where = json.loads((sharded / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    name, other = "model.norm.weight", next(f for f in where.values() if f != where["model.norm.weight"])
    for i, wrong in enumerate(({name: other}, {"model.more.weight": other})):
        words = changed(sharded, tmp_path / f"{i}", "model.safetensors.index.json", {"weight_map": where | wrong})
        with pytest.raises(UserError, match=f"{next(iter(wrong))}.*{other}") as error:
            export.main(words)
        assert error.value.code == 3
    idle = {"model.layers.0.self_attn.rotary_emb.inv_freq": other}              # older programs saved it, newer do not
    export.main(changed(sharded, tmp_path / "idle", "model.safetensors.index.json", {"weight_map": where | idle}))


def test_of_a_tensor_that_is_there_twice_the_index_names_one(sharded, tmp_path):
    words = changed(sharded, tmp_path / "twice", "config.json", {})
    where = json.loads((sharded / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    right, name = where["model.norm.weight"], "model.norm.weight"
    for file in set(where.values()) - {right}:
        found = load_file(tmp_path / "twice" / file)
        save_file(found | {name: torch.full((32,), 7.0).bfloat16()}, tmp_path / "twice" / file, {"format": "pt"})
    export.main(words)
    assert torch.equal(read_checkpoint(tmp_path / "新 的.pkl")["weights"]["norm.weight"],
                       load_file(sharded / right)[name])


@pytest.mark.parametrize("kind", ["utf-8-sig", "utf-16"])
def test_files_that_an_editor_saved_with_a_mark_are_read_and_go_back_as_they_came(sharded, tmp_path, kind):
    folder = shutil.copytree(sharded, tmp_path / "edited")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                 "model.safetensors.index.json"):
        text = (folder / name).read_text(encoding="utf-8").replace("\n", "\r\n")
        (folder / name).write_bytes(text.encode(kind))
        assert (folder / name).read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16))
    for place, made in ((sharded, "plain"), (folder, "edited")):
        export.main(["--from", "hf", str(place), "--output", str(tmp_path / f"{made}.pkl")])
    one, two = (read_checkpoint(tmp_path / f"{made}.pkl") for made in ("plain", "edited"))
    assert all(torch.equal(one["weights"][n], two["weights"][n]) for n in one["weights"])
    assert one["config"] == two["config"] and one["vocab"]["dialogue"] == two["vocab"]["dialogue"]
    export.main(["--model", str(tmp_path / "edited.pkl"), "--to", "hf", "--output", str(tmp_path / "back")])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


def test_a_list_of_words_with_a_mark_and_other_line_breaks_is_the_same_list(tmp_path):
    folder = tmp_path / "plain"
    toy_bases.base_folder(folder, "gpt2")
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)), encoding="utf-8", newline="\n")
    edited = shutil.copytree(folder, tmp_path / "edited")
    (edited / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)), encoding="utf-8-sig", newline="\r\n")
    for place in (folder, edited):
        export.main(["--from", "hf", str(place), "--output", f"{place}.pkl"])
    one, two = (Vocab.from_state(read_checkpoint(f"{place}.pkl")["vocab"]) for place in (folder, edited))
    assert one.encode("山在上，水 a river 在下。") == two.encode("山在上，水 a river 在下。") and len(one) == len(two)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_part_is_read_once_and_a_file_is_mapped_once_for_many(tmp_path, monkeypatch, name):
    toy_bases.base_folder(tmp_path / "folder", name)
    torch.save(load_file(tmp_path / "folder/model.safetensors"), tmp_path / "folder/pytorch_model.bin")
    (tmp_path / "folder/model.safetensors").unlink()
    read, mapped, pickled = [], [], tensors._pickled

    def opened(path):
        mapped.append(path)
        return lambda name, found=pickled(path): read.append(name) or found[name]
    monkeypatch.setattr(tensors, "_opened", opened)
    export.main(["--from", "hf", str(tmp_path / "folder"), "--output", str(tmp_path / "base.pkl")])
    assert len(mapped) == 1 and read and len(read) == len(set(read))

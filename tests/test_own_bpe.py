"""token_kind: bpe, a byte-level BPE of one's own: its merges, every stage on it, its exports, and the way back.

That no text becomes a reserved id and that decoding is the inverse stands in test_vocab.py, what its tokenizer.json
does in test_export_tokenizer.py, for this kind as for the others.
"""
import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tokenizers")

import ranks                                                              # noqa: E402
import toy                                                                # noqa: E402
import toy_server                                                         # noqa: E402
from chat_agent import chat, evaluate, export                             # noqa: E402
from chat_agent.load import load                                          # noqa: E402
from chat_agent.session import Session                                    # noqa: E402
from model.build import build                                             # noqa: E402
from tools.checkpoint import load_chain, read_checkpoint                  # noqa: E402
from tools.errors import UserError                                        # noqa: E402
from tools.vocab import FIRST_BYTE, FIRST_WORD, Vocab                     # noqa: E402
from tools.words import bpe                                               # noqa: E402

TEXTS = [row["text"] for row in toy.text_rows(60)]
PAIRS = [{"prompt": f"{a}呢？", "chosen": f"{a}。", "rejected": f"不见了{a}。"} for a in toy.THINGS]
STAGES = {"sft": {}, "lora": {"rank": 2, "lora_targets": "all"}, "prefix": {"prefix_len": 3},
          "memory": {"memory_tokens": 12, "memory_chapters": 4, "rank": 2}, "dpo": {}}


@pytest.fixture(scope="module")
def vocab():
    return Vocab.create_vocab(TEXTS, 420, "bpe", texts=True, progress=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model that pre-training has made, vocabulary included."""
    folder = tmp_path_factory.mktemp("bpe")
    options = options_of(folder, "pre", save_steps=2)
    assert toy.train(options).exit == 0
    return folder


def options_of(folder, stage, name=None, **keys):
    rows = {"pre": toy.text_rows(40), "dpo": PAIRS}.get(stage, toy.dialogue_rows(16, 3))
    data = toy.write_rows(folder / f"{stage}.jsonl", rows)
    vocab = Vocab.create_vocab(TEXTS, 420, "bpe", texts=True, progress=False)
    more = {"pretraining_model_path": str(folder / "out/TinySeek_Pre_final.pkl"),
            "replay_data_path": str(data)} if stage != "pre" else {}
    return toy.toy_options(folder, vocab, stage, rows, **{
        "json_data_path": str(data), "vocab_data_path": str(folder / "pre.jsonl"), "token_kind": "bpe",
        "vocab_size": 420, "attention": "gqa", "qk_norm": True, "use_moe": False, "use_fc2": False, "max_steps": 4,
        "name": name, **more, **STAGES.get(stage, {}), **keys})


def by_hand(vocab, text):
    """BPE as it is told: of all neighbours, those whose merge is the earliest become one."""
    order = {tuple(pair): i for i, pair in reversed(list(enumerate(vocab.merges)))}
    ids = [FIRST_BYTE + byte for byte in text.encode()]
    while pairs := [(order[pair], at) for at, pair in enumerate(zip(ids, ids[1:])) if pair in order]:
        at = min(pairs)[1]
        joined = vocab.decode_bytes(ids[at:at + 2])
        ids[at:at + 2] = [next(i for i in range(FIRST_WORD, len(vocab)) if vocab.decode_bytes([i]) == joined)]
    return ids


def test_merges_are_applied_in_their_order(vocab):
    for text in ["苹果很好看", "放在桌上是圆的", "桌上桌上苹果龘", "apple", "é", "苹", *toy.THINGS, *toy.DOINGS]:
        assert vocab.encode(text) == by_hand(vocab, text), text
    assert any(len(vocab.name(i)) > 1 for i in vocab.encode("".join(TEXTS)))


def test_the_colon_of_dialogues_joins_nothing(vocab):
    colon = vocab.id("：")
    assert colon == FIRST_WORD and vocab.encode("：：苹果：") == [colon, colon, *vocab.encode("苹果"), colon]
    assert len({bytes(vocab.decode_bytes([i])) for i in range(FIRST_BYTE, len(vocab))}) == len(vocab) - FIRST_BYTE


def test_same_data_same_merges_and_few_places_are_enough(vocab):
    again = Vocab.create_vocab(list(TEXTS), 420, "bpe", texts=True, progress=False)
    assert again == vocab and again.state() == vocab.state() and len(vocab) <= 420
    assert Vocab.from_state(json.loads(json.dumps(vocab.state()))) == vocab


@pytest.mark.parametrize("harm", [
    lambda s: {**s, "hash": "0" * 64}, lambda s: {**s, "format": 2}, lambda s: {**s, "merges": s["merges"][:-1]},
    lambda s: {**s, "merges": [[5, 300]]}, lambda s: {**s, "merges": [[FIRST_WORD, 300]]},
    lambda s: {**s, "merges": [[20, 9999]]}, lambda s: {**s, "merges": [[20.0, 30]]}, lambda s: {**s, "merges": 7},
    lambda s: {**s, "merges": [[20]]}])
def test_a_damaged_state_is_refused(vocab, harm):
    harmed = harm(vocab.state())
    if harmed["hash"] == vocab.hash and len(harmed["merges"] if isinstance(harmed["merges"], list) else "") < 2:
        harmed["hash"] = bpe._hash(harmed)                # a consistent forgery: the content itself is refused
    with pytest.raises(UserError, match="损坏") as error:
        Vocab.from_state(harmed)
    assert error.value.code == 4


def test_without_the_package_a_user_is_told_what_to_install(vocab, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for ask in (lambda: Vocab.create_vocab(TEXTS, 420, "bpe", texts=True), lambda: Vocab.from_state(vocab.state())):
        with pytest.raises(UserError, match="requirements-export.txt") as error:
            ask()
        assert error.value.code == 2


def test_bytes_of_plain_signs_are_no_unknown_words(vocab):
    low, high = vocab.broken
    unknown = [[i for i in vocab.encode(text) if low <= i < high] for text in ("a1 +\n", "龘")]
    assert not unknown[0] and unknown[1]


def test_a_training_builds_it_and_keeps_it_in_its_checkpoints(place):
    options = options_of(place, "pre")
    made = read_checkpoint(place / "out/TinySeek_Pre_final.pkl")
    vocab = Vocab.from_state(made["vocab"])
    assert vocab.token_kind == "bpe" and vocab.hash == made["vocab_hash"] == Vocab.load_vocab(
        options["vocab_trg_path"]).hash
    assert made["config"]["vocab_size"] == len(vocab)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns_on_it(place, stage):
    loop = toy.train(options_of(place, stage, stage), stage)
    assert loop.exit == 0 and loop.step == 4
    chain = load_chain(place / f"out/{stage}/TinySeek_{loop.stage.label}_final.pkl")
    assert len({one["vocab_hash"] for one in chain}) == 1 and Vocab.from_state(chain[-1]["vocab"]).token_kind == "bpe"


@pytest.mark.parametrize("stage, more", [("pre", {"num_workers": 2}), ("sft", {})])
def test_a_resumed_run_is_the_uninterrupted_one(place, stage, more):
    whole = toy.train(options_of(place, stage, f"whole_{stage}", save_steps=2), stage)
    torn = options_of(place, stage, f"torn_{stage}", save_steps=2, **more)
    assert toy.train(torn, stage, kill_after=3).exit == -9
    again = toy.train(torn, stage)
    label = again.stage.label
    one, two = (read_checkpoint(place / f"out/{name}_{stage}/TinySeek_{label}_final.pkl")
                for name in ("whole", "torn"))
    assert again.exit == 0 and again.step == whole.step == 4 and toy.same_tensors(one["weights"], two["weights"])


def test_chat_and_evaluation(place, capsys):
    model = str(place / "out/TinySeek_Pre_final.pkl")
    chat.main(["--model", model, "--prompt", "你好", "--max_new_tokens", "6", "--device", "cpu"])
    assert capsys.readouterr().out.strip()
    data = toy.write_rows(place / "held.jsonl", toy.dialogue_rows(4) + toy.text_rows(2))
    evaluate.main(["--model", model, "--task", "bpc", "--data", str(data), "--device", "cpu"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert "bits_per_char" in json.dumps(found), found


def test_it_is_served(place, tmp_path):
    pytest.importorskip("fastapi")
    path = place / "out/TinySeek_Pre_final.pkl"
    with toy_server.serving(tmp_path, models={"one": path}) as server:
        assert server.chat("你好") == "".join(Session(*load(path, "cpu")[:2], 60).ask("你好", 12))


def test_it_goes_to_transformers_and_comes_back(place, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = place / "out/TinySeek_Pre_final.pkl"
    export.main(["--model", str(path), "--to", "hf", "--output", str(tmp_path / "hf")])
    export.main(["--from", "hf", str(tmp_path / "hf"), "--output", str(tmp_path / "back.pkl")])
    one, two = read_checkpoint(path), read_checkpoint(tmp_path / "back.pkl")
    assert toy.same_tensors(one["weights"], two["weights"]) and one["vocab"]["merges"] == two["vocab"]["merges"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer("苹果在桌上：圆的。", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == Vocab.from_state(one["vocab"]).encode("苹果在桌上：圆的。")
    with torch.no_grad():
        ours = build([one])(ids).logits_1
        assert (theirs(ids).logits - ours).abs().max() < 1e-4 * ours.abs().max()
    for name in ("tinyseek.json", "README.md"):                           # a folder that somebody else saved again
        (tmp_path / "hf" / name).unlink()
    export.main(["--from", "hf", str(tmp_path / "hf"), "--output", str(tmp_path / "again.pkl")])
    assert read_checkpoint(tmp_path / "again.pkl")["vocab_hash"] == one["vocab_hash"]


def test_it_goes_to_llama_cpp_as_a_tokenizer_that_it_has(place, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = place / "out/TinySeek_Pre_final.pkl"
    export.main(["--model", str(path), "--to", "gguf", "--output", str(tmp_path / "x.gguf")])
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    vocab = Vocab.from_state(read_checkpoint(path)["vocab"])
    said = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "pre", "tokens", "merges",
                                                                           "token_type")}
    assert (said["model"], said["pre"], len(said["merges"])) == ("gpt2", "qwen2", len(vocab.merges))
    assert len(said["tokens"]) == len(vocab) and said["tokens"][9] == "<|User|>"
    user_defined = [i for i, kind in enumerate(said["token_type"]) if kind == gguf.TokenType.USER_DEFINED]
    assert user_defined == [vocab.id("：")] and said["tokens"][user_defined[0]] == "："


@pytest.mark.slow
def test_two_ranks_have_one_vocabulary(tmp_path):
    data = toy.write_rows(tmp_path / "pre.jsonl", toy.text_rows(60))

    def train(folder, *launcher, steps="2"):
        words = ["--out_dir", folder, "--log_dir", folder, "--log_file", folder / "log.txt", "--json_data_path", data,
                 "--vocab_data_path", data, "--token_kind", "bpe", "--vocab_size", 420, "--d_model", 32, "--n_head", 4,
                 "--n_layer", 1, "--max_len", 40, "--max_steps", steps, "--eval_share", 0, "--device", "cpu",
                 "--threads", 1]
        done = subprocess.run([sys.executable, *launcher, "train_agent/pre_train.py", *map(str, words)],
                              cwd=toy.Path(bpe.__file__).parents[2], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and "fork" not in done.stderr, done.stderr[-2000:]
        return read_checkpoint(folder / "TinySeek_Pre_final.pkl")["vocab_hash"]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(ranks.free_port()))
    assert train(tmp_path / "two", *launcher) == train(tmp_path / "one")

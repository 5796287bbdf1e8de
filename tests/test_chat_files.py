"""What the terminal chat reads and writes: kept conversations, and models by path and by name."""
import json
import os
from pathlib import Path

import pytest
import torch

from chat_agent import chat
from chat_agent.load import choose_device, load
from chat_agent.terminal import kept
from chat_agent.terminal.kept import messages_of
from tools.checkpoint import write_torch
from tools.errors import UserError
from test_chat import answer, converse, saved


def test_a_saved_conversation_is_training_data(saved, capsys, monkeypatch, tmp_path):
    from tools.formats import read_rows
    place = tmp_path / "kept.jsonl"
    converse(monkeypatch, capsys, ["苹果呢？", f"/save {place}"], "--model", saved(), "--max_new_tokens", 6)
    assert [row.kind for row in read_rows([place])] == ["dialogue"]


BAD_FILES = ["", "[]", '{"messages": 3}', '{"messages": [{"role": "boss", "content": "x"}]}', "[" * 9000,
             '{"messages": [{"role": "user"}]}']


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_file_that_is_no_conversation(saved, capsys, monkeypatch, tmp_path, content):
    (tmp_path / "x").write_text(content)
    out = converse(monkeypatch, capsys, [f"/load {tmp_path / 'x'}", "苹果"], "--model", saved(), "--max_new_tokens", 3)[1]
    assert "不是 /save 存下的对话" in out


# ---------------------------------------------------------------- kept conversations

TALK = [{"role": "user", "content": "茶"}, {"role": "assistant", "content": "好"}]


def test_save_appends_and_load_takes_the_last(tmp_path):
    path = tmp_path / "c.jsonl"
    for number in range(1, 4):
        assert kept.save(str(path), [[{"role": "user", "content": str(number)}, TALK[1]]]) == number
    assert [m[0]["content"] for m in kept.restore(str(path))] == ["1", "2", "3"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n"))              # as an editor may leave it
    assert kept.save(str(path), [TALK]) == 4 and len(kept.restore(str(path))) == 4
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    path.chmod(0o600)
    assert kept.save(str(link), [TALK]) == 5 and link.is_symlink() and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b for b in BAD_FILES if b]
                         + ['{"text": "一行训练数据"}\n', "随便什么\n", '{"messages": []}\n{"text": "x"}\n', "\xff"])
def test_save_never_changes_a_file_that_holds_something_else(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content.encode("latin-1" if content == "\xff" else "utf-8"))
    before = path.read_bytes()
    with pytest.raises(UserError, match="不会改动"):
        kept.save(str(path), [TALK])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_save_without_a_reply_writes_nothing(tmp_path):
    for empty in ([], TALK[:1], [{"role": "system", "content": "s"}]):
        with pytest.raises(UserError, match="没有什么可存"):
            kept.save(str(tmp_path / "x.jsonl"), [empty])
    for path in (str(tmp_path), str(tmp_path / "no" / "x"), "a\0b", "\ud800", "x.jsonl.gz", ""):
        with pytest.raises(UserError):
            kept.save(path, [TALK])
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "c.jsonl"
    kept.save(str(path), [TALK])
    before, real = path.read_bytes(), kept.os.write
    monkeypatch.setattr(kept.os, "write", lambda handle, content: real(handle, content[:7]))
    with pytest.raises(UserError, match="没有动"):
        kept.save(str(path), [TALK])
    assert path.read_bytes() == before


def test_each_of_several_models_gets_its_own_conversation_back(saved, capsys, monkeypatch, tmp_path):
    path, models = tmp_path / "c.jsonl", ["--model", saved("a.pkl"), "--model", saved("b.pkl", seed=1)]
    lines = ["苹果", f"/save {path}", f"/save {path}", "/clear", f"/load {path}", f"/save {tmp_path / 'd'}"]
    converse(monkeypatch, capsys, lines, *models, "--max_new_tokens", 5)
    rows = path.read_text().splitlines()
    assert len(rows) == 4 and rows[0] != rows[1] and (tmp_path / "d").read_text().splitlines() == rows[2:]


# ---------------------------------------------------------------- loading

def test_files_that_do_not_fit(saved, vocab, ram_path):
    cases = {"hash": dict(vocab_hash="00"), "shape": dict(config={"vocab_size": 300}),
             "keys": dict(config={"nonsense": 1}),
             "weights": dict(weights={"fc1.weight": torch.zeros(2, 2)})}
    for name, change in cases.items():
        with pytest.raises(UserError) as error:
            load(saved(f"{name}.pkl", **change))
        assert error.value.code == 4, name
    (ram_path / "junk.pkl").write_bytes(b"junk")
    with pytest.raises(UserError) as error:
        load(ram_path / "junk.pkl")
    assert error.value.code == 3


def test_device_that_is_not_there():
    assert choose_device("cpu").type == "cpu"
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(UserError) as error:
            choose_device(name)
        assert error.value.code == 2


def test_loaded_models_are_frozen_and_in_eval_mode(saved):
    model = load(saved())[0]
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_short_names_are_distinct():
    names = chat.short_names(["a/TinySeek_SFT_final.pkl", "b/TinySeek_SFT_final.pkl", "x.pkl", "x.pkl"])
    assert len(set(names)) == 4 and names[0] == "a/SFT_final"


def test_loaded_conversations_hold_no_half_characters():
    with pytest.raises(ValueError):
        messages_of({"messages": [{"role": "user", "content": "\ud83d"}]})


# ---------------------------------------------------------------- which model

def test_a_name_chooses_the_last_finished_model_of_that_run(saved, ram_path, capsys):
    (ram_path / "out" / "expA").mkdir(parents=True)
    for number, (name, seed) in enumerate(
            (("expA/TinySeek_Pre_final", 1), ("expA/TinySeek_SFT_final", 2), ("TinySeek_SFT_final", 3))):
        path = Path(saved(f"out/{name}.pkl", seed=seed))
        os.utime(path, (1000 + number, 1000 + number))
    common = ["--out_dir", ram_path / "out", "--prompt", "苹果", "--max_new_tokens", 8]
    named, usual = answer(capsys, *common, "--name", "expA"), answer(capsys, *common)
    direct = answer(capsys, *common, "--model", ram_path / "out/expA/TinySeek_SFT_final.pkl")
    assert named[:2] == direct[:2] != usual[:2]
    for words, code, said in ((["--name", "expB"], 3, "有：expA"), (["--name", "expA", "--model", "x.pkl"], 2, "只写一个")):
        with pytest.raises(UserError) as error:
            chat.main([str(w) for w in [*common, *words]])
        assert error.value.code == code and said in str(error.value)


def test_evaluate_and_export_know_names_too(saved, ram_path, capsys):
    from chat_agent import evaluate, export
    (ram_path / "out" / "expA").mkdir(parents=True)
    path, out = saved("out/expA/TinySeek_SFT_final.pkl"), str(ram_path / "out")
    (ram_path / "t.jsonl").write_text('{"text": "苹果"}\n', encoding="utf-8")
    assert evaluate.main(
        ["--name", "expA", "--out_dir", out, "--task", "bpc", "--data", str(ram_path / "t.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["models"][0]["model"] == path
    export.main(
        ["--name", "expA", "--out_dir", out, "--to", "safetensors", "--output", str(ram_path / "x.safetensors")])
    assert (ram_path / "x.safetensors").exists()


def test_a_model_that_is_not_there_names_those_that_are(saved, ram_path):
    (ram_path / "out" / "backup_1").mkdir(parents=True)
    saved("out/backup_1/TinySeek_SFT_final.pkl")
    with pytest.raises(UserError, match="backup_1"):
        load(ram_path / "out" / "TinySeek_SFT_final.pkl")
    saved("out/TinySeek_Lora_final.pkl")
    with pytest.raises(UserError, match="TinySeek_Lora_final.pkl"):
        load(ram_path / "out" / "TinySeek_SFT_final.pkl")


def test_a_state_is_no_model_and_the_message_names_the_file_beside_it(ram_path, saved):
    write_torch(ram_path / "TinySeek_SFT0_1.state", {"pkl_sha256": "x"})
    for read in (load, lambda path: chat.main(["--model", str(path), "--prompt", "x"])):
        with pytest.raises(UserError) as error:
            read(ram_path / "TinySeek_SFT0_1.state")
        assert error.value.code == 4 and "续训用的，请用同名的 TinySeek_SFT0_1.pkl" in str(error.value)

"""tools/get_data.py: a local mirror becomes rows to train on, whole, checked and resumable; without a network one line
says so."""
import hashlib
import importlib.abc
import json
import sys
import types

import pytest

import toy
from tools import get_data
from tools.errors import UserError
from tools.formats import read_rows

TALK = [["你 好 吗", "我 很 好 ， 谢谢 Tom Lee", "那 就 好"], ["吃 了 没", "还 没 呢"]]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "镜像" / "thu-coai/lccc"
    folder.mkdir(parents=True)
    toy.write_rows(folder / "base_train.jsonl", [{"dialog": one} for one in TALK * 10])
    return tmp_path / "镜像"


def fetched(tmp_path, *words):
    get_data.main([*words, "--output", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")])
    return tmp_path / "data"


def test_a_mirror_becomes_dialogues_without_the_spaces_of_words(mirror, tmp_path, capsys):
    folder = fetched(tmp_path, "lccc", "--mirror", str(mirror))
    rows = lines(folder / "lccc.jsonl")
    assert len(rows) == 20 and [m["content"] for m in rows[0]["conversations"]][:2] == ["你好吗", "我很好，谢谢Tom Lee"]
    assert [m["role"] for m in rows[0]["conversations"]][:2] == ["user", "assistant"]
    assert all(row.kind == "dialogue" for row in read_rows(folder / "lccc.jsonl"))
    assert "MIT" in capsys.readouterr().out
    digest = hashlib.sha256((folder / "lccc.jsonl").read_bytes()).hexdigest()
    assert digest in (folder / "checksums.json").read_text(encoding="utf-8")
    fetched(tmp_path, "lccc", "--mirror", str(mirror))
    assert "校验通过" in capsys.readouterr().out and not list(folder.glob("*.part*"))


def test_a_file_that_was_changed_since_is_not_trusted(mirror, tmp_path):
    folder = fetched(tmp_path, "lccc", "--mirror", str(mirror))
    with open(folder / "lccc.jsonl", "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match="不一样"):
        fetched(tmp_path, "lccc", "--mirror", str(mirror))


def test_the_mirrors_own_checksums_are_checked(mirror, tmp_path):
    source = mirror / "thu-coai/lccc/base_train.jsonl"
    sums = source.with_name("SHA256SUMS")
    sums.write_text(f"{hashlib.sha256(source.read_bytes()).hexdigest()}  {source.name}\n", encoding="utf-8")
    fetched(tmp_path, "lccc", "--mirror", str(mirror))
    source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(UserError, match="SHA256SUMS"):
        fetched(tmp_path / "again", "lccc", "--mirror", str(mirror))


def test_broken_off_it_goes_on_and_ends_with_the_same_bytes(mirror, tmp_path, monkeypatch):
    whole = fetched(tmp_path / "whole", "lccc", "--mirror", str(mirror)) / "lccc.jsonl"
    monkeypatch.setattr(get_data, "EVERY", 4)
    asked, parse = [], get_data.parse_line

    def killed(raw):
        asked.append(raw)
        if len(asked) == 11:
            raise KeyboardInterrupt
        return parse(raw)
    monkeypatch.setattr(get_data, "parse_line", killed)
    with pytest.raises(KeyboardInterrupt):
        fetched(tmp_path, "lccc", "--mirror", str(mirror))
    folder = fetched(tmp_path, "lccc", "--mirror", str(mirror))
    assert len(asked) == 11 + 12 and (folder / "lccc.jsonl").read_bytes() == whole.read_bytes()


def test_texts_and_a_limit(tmp_path):
    folder = tmp_path / "镜像/minimind_dataset"
    folder.mkdir(parents=True)
    toy.write_rows(folder / "pretrain_t2t_mini.jsonl", [{"text": "苹果 很好"}] * 5)
    toy.write_rows(folder / "sft_t2t.jsonl", toy.dialogue_rows(5))
    made = fetched(tmp_path, "minimind-text", "--mirror", str(tmp_path / "镜像"), "--rows", "3")
    assert lines(made / "minimind-text.jsonl") == [{"text": "苹果 很好"}] * 3


@pytest.mark.parametrize("words, says", [
    (["nothing"], "没有叫 nothing"), (["lccc", "--mirror", "empty"], "没有 thu-coai/lccc"),
    (["lccc", "--rows", "0"], "至少为 1")])
def test_what_users_get_wrong(words, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        fetched(tmp_path, *words)
    assert error.value.code == 2


class Nowhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "datasets":
            raise ImportError(name)


def test_without_the_package_or_the_network_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Nowhere(), *sys.meta_path])
    with pytest.raises(UserError) as error:
        fetched(tmp_path, "lccc")
    assert "--mirror" in str(error.value) and "\n" not in str(error.value)


def test_of_several_files_only_the_one_that_is_wanted_is_fetched(tmp_path, monkeypatch):
    asked = []

    def load_dataset(kind, **how):
        asked.append((kind, how["data_files"]))
        return [{"text": "苹果"}] * 4
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(lines(fetched(tmp_path, "minimind-text") / "minimind-text.jsonl")) == 4
    assert asked == [("json", "hf://datasets/jingyaogong/minimind_dataset/pretrain_t2t_mini.jsonl")]


def test_without_a_word_it_lists_what_it_knows(tmp_path, capsys):
    fetched(tmp_path)
    said = capsys.readouterr().out
    assert all(name in said and one.hub in said and one.licence in said for name, one in get_data.SETS.items())

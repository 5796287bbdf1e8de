"""The token cache: what it holds, when it is built anew, and that many processes write what one does."""
import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import template
from tools.errors import UserError
from tools.vocab import Vocab
from toy import dialogue_rows, text_rows, write_rows
from train_agent.trainers.data import token_cache
from train_agent.trainers.data.token_cache import file_digest, open_cache

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(ram_path):
    return ram_path / "cache"


def documents(cache):
    return [cache.document(i) for i in range(len(cache))]


def test_texts_are_targets_from_their_first_token_on(ram_path, place, vocab):
    rows = text_rows(12)
    cache = open_cache(write_rows(ram_path / "a.jsonl", rows), vocab, "pretraining", place)
    end = vocab.id("<|im_end|>")
    for (ids, supervised), row in zip(documents(cache), rows, strict=True):
        assert ids.tolist() == [end, *vocab.encode(row["text"]), end] and ids.dtype == np.int64
        assert supervised.tolist() == [False] + [True] * (len(ids) - 1)
    assert cache.rows.tolist() == list(range(12))


def test_dialogues_keep_the_templates_mask_unless_all_of_it_is_learned(ram_path, place, vocab):
    rows = dialogue_rows(8)
    data = write_rows(ram_path / "a.jsonl", rows)
    tuned = open_cache(data, vocab, "instruction_finetuning", place)
    for (ids, supervised), row in zip(documents(tuned), rows, strict=True):
        expected = template.render(row["conversations"], vocab)
        assert ids.tolist() == expected[0].tolist() and supervised.tolist() == expected[1].tolist()
    for ids, supervised in documents(open_cache(data, vocab, "pretraining", place)):
        assert supervised.tolist() == [False] + [True] * (len(ids) - 1)


def test_units_of_one_row_are_documents_of_their_own(ram_path, place, vocab):
    cache = open_cache(write_rows(ram_path / "a.jsonl", [{"text": "书<|im_end|>茶"}, {"text": "书"}]), vocab,
                       "pretraining", place)
    assert len(cache) == 3 and cache.rows.tolist() == [0, 0, 1]
    starts, ends = cache.bounds([0, 2])
    assert starts.tolist() == [0, cache.ends[1]] and ends.tolist() == [cache.ends[0], cache.ends[2]]


def test_rows_are_counted_over_all_files_and_lines(ram_path, place, vocab):
    """A row's number is its line, bad and blank lines counted, the second file's lines after the first's."""
    a, b = ram_path / "a.jsonl", ram_path / "b.jsonl.gz"
    a.write_text('{"text": "书"}\n\n不是 JSON\n{"text": "茶"}\n', encoding="utf-8")
    b.write_bytes(gzip.compress('{"text": "月亮"}\n{"text": "小船"}\n'.encode()))
    cache = open_cache([a, b], vocab, "pretraining", place, bad_log=ram_path / "bad.jsonl")
    assert cache.rows.tolist() == [0, 3, 4, 5] and cache.meta["bad"] == 1
    assert "a.jsonl" in (ram_path / "bad.jsonl").read_text(encoding="utf-8")


def test_built_once_then_mapped(ram_path, place, vocab, monkeypatch):
    data = write_rows(ram_path / "a.jsonl", text_rows(5))
    first = open_cache(data, vocab, "pretraining", place)
    monkeypatch.setattr(token_cache, "_build", lambda *_: pytest.fail("built again"))
    again = open_cache(data, vocab, "pretraining", place)
    assert isinstance(again.tokens, np.memmap) and (again.tokens == first.tokens).all()
    assert pickle.loads(pickle.dumps(again)).folder == again.folder and len(pickle.dumps(again)) < 1000
    assert not list(ram_path.glob("*.bin"))                                       # nothing beside the data


@pytest.mark.parametrize("change", ["data", "vocabulary", "mode", "template", "text_field"])
def test_a_change_of_anything_that_matters_gives_another_cache(ram_path, place, vocab, monkeypatch, change):
    from tools.vocab import Vocab
    data, mode, field = write_rows(ram_path / "a.jsonl", [{"text": "书在桌上", "more": "茶"}]), "pretraining", None
    old = open_cache(data, vocab, mode, place)
    if change == "data":
        write_rows(data, [{"text": "书在桌下"}])
    elif change == "vocabulary":
        vocab = Vocab.create_vocab(["书"], vocab_size=450, texts=True, progress=False)
    elif change == "mode":
        mode = "instruction_finetuning"
    elif change == "template":
        monkeypatch.setattr(template, "TEMPLATE", template.TEMPLATE + 1)
    else:
        field = "more"
    assert open_cache(data, vocab, mode, place, field).folder != old.folder


def test_files_are_hashed_again_only_when_size_or_time_changed(ram_path, place, monkeypatch):
    data = write_rows(ram_path / "a.jsonl", text_rows(3))
    digest = file_digest(data, place)
    calls = []
    real = token_cache.hashlib.file_digest
    monkeypatch.setattr(token_cache.hashlib, "file_digest", lambda *a: calls.append(1) or real(*a))
    assert file_digest(data, place) == digest and not calls
    os.utime(data, (1, 1))
    assert file_digest(data, place) == digest and len(calls) == 1
    (place / "files.json").write_text("{half", encoding="utf-8")
    assert file_digest(data, place) == digest and len(calls) == 2


def test_many_processes_write_what_one_does(ram_path, vocab, monkeypatch):
    data = write_rows(ram_path / "a.jsonl", text_rows(200) + dialogue_rows(50))
    monkeypatch.setattr(token_cache, "BLOCK", 4000)
    alone = open_cache(data, vocab, "pretraining", ram_path / "one")
    monkeypatch.setattr(token_cache, "PARALLEL_FROM", 0)
    monkeypatch.setattr(token_cache, "cores", lambda: 2)
    together = open_cache(data, vocab, "pretraining", ram_path / "two")
    for name in ("tokens.bin", "ends.bin", "rows.bin"):
        assert (alone.folder / name).read_bytes() == (together.folder / name).read_bytes()


def test_a_script_without_a_main_guard_runs_once(ram_path, vocab):
    """What a spawned worker would run again is the caller's script."""
    write_rows(ram_path / "a.jsonl", text_rows(200))
    vocab.save(ram_path / "vocab.json")
    (ram_path / "first_try.py").write_text(f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from tools.vocab import Vocab
from train_agent.trainers import create_dataloader
from train_agent.trainers.data import token_cache
print("here", __file__)
token_cache.PARALLEL_FROM, token_cache.BLOCK, token_cache.cores = 0, 4000, lambda: 2
batches = create_dataloader("a.jsonl", Vocab.load_vocab("vocab.json"), training_mode="pretraining", max_length=64, cache_dir="cache")
print(len(list(batches)) > 0, __spec__, __file__)
""", encoding="utf-8")
    ran = subprocess.run([sys.executable, "first_try.py"], cwd=ram_path, capture_output=True, text=True)
    script = str(ram_path / "first_try.py")
    assert ran.returncode == 0 and ran.stdout.splitlines() == [f"here {script}",
                                                               f"True None {script}"], ran.stdout + ran.stderr


def test_too_many_bad_lines_stop_with_8_and_leave_no_cache(ram_path, place, vocab):
    data = ram_path / "a.jsonl"
    data.write_text('{"text": "书"}\n' * 5 + "坏\n" * 11, encoding="utf-8")
    with pytest.raises(UserError) as error:
        open_cache(data, vocab, "pretraining", place, bad_log=ram_path / "bad.jsonl")
    assert error.value.code == 8
    assert [p.name for p in place.iterdir()] == ["files.json"]


def test_no_usable_row_is_8(ram_path, place, vocab):
    data = ram_path / "a.jsonl"
    data.write_text("\n\n", encoding="utf-8")
    for attempt in (lambda: open_cache(data, vocab, "pretraining", place),
                    lambda: Vocab.create_vocab(data, progress=False)):
        with pytest.raises(UserError) as error:
            attempt()
        # the same, whether the vocabulary is there already or not
        assert error.value.code == 8


def test_a_damaged_cache_is_made_again(ram_path, place, vocab, capsys):
    data = write_rows(ram_path / "a.jsonl", text_rows(5))
    cache = open_cache(data, vocab, "pretraining", place)
    good, folder = documents(cache), cache.folder
    for name in ("tokens.bin", "ends.bin", "rows.bin", "meta.json"):
        path = folder / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
        again = open_cache(data, vocab, "pretraining", place)
        assert all((a == c).all() and (b == d).all() for (a, b), (c, d) in zip(documents(again), good, strict=True))
        assert "重新生成" in capsys.readouterr().err
    (folder / "ends.bin").unlink()
    assert len(open_cache(data, vocab, "pretraining", place)) == 5


def test_a_file_that_changes_while_it_is_read_is_no_data_yet(ram_path, place, vocab, monkeypatch):
    """A cache under the digest of what the file was must not hold what it has become."""
    data, real = write_rows(ram_path / "a.jsonl", text_rows(12)), token_cache._blocks
    before = Path(data).read_bytes()

    def grows(path):
        with open(path, "ab") as file:
            file.write('{"text": "书"}\n'.encode())
        return real(path)
    monkeypatch.setattr(token_cache, "_blocks", grows)
    with pytest.raises(UserError, match="变了") as error:
        open_cache(data, vocab, "pretraining", place)
    assert error.value.code == 2 and [p.name for p in place.iterdir()] == ["files.json"]
    monkeypatch.undo()
    Path(data).write_bytes(before)
    assert len(open_cache(data, vocab, "pretraining", place)) == 12


def test_of_two_runs_that_make_the_same_cache_at_once_the_first_keeps_its_own(ram_path, place, vocab, monkeypatch):
    data, real, first = write_rows(ram_path / "a.jsonl", text_rows(12)), token_cache._write, []

    def slower(*arguments):
        if not first:
            first.append(None)
            first[0] = open_cache(data, vocab, "pretraining", place)    # another run begins and ends meanwhile
            first.append(os.stat(first[0].folder).st_ino)
        return real(*arguments)
    monkeypatch.setattr(token_cache, "_write", slower)
    second = open_cache(data, vocab, "pretraining", place)
    assert os.stat(second.folder).st_ino == first[1] and len(second) == len(pickle.loads(pickle.dumps(first[0]))) == 12
    assert sorted(p.name for p in place.iterdir()) == sorted(["files.json", second.name])


def test_large_files_are_hashed_in_parts(ram_path, place, vocab, monkeypatch):
    monkeypatch.setattr(token_cache, "PART", 100)
    cache = open_cache(write_rows(ram_path / "a.jsonl", text_rows(20)), vocab, "pretraining", place)
    for name, (size, *digests) in cache.meta["content"].items():
        raw = (cache.folder / name).read_bytes()
        assert size == len(raw) and digests == [token_cache.hashlib.sha256(raw[i:i + 100]).hexdigest()
                                                for i in range(0, size, 100)]


def test_what_a_killed_build_left_is_removed_when_nobody_writes_it(ram_path, place, vocab):
    data = write_rows(ram_path / "a.jsonl", text_rows(5))
    old, own, fresh = (
        place / name for name in (".tmp-k-999999999-ab", f".tmp-k-{os.getppid()}-ab", ".tmp-k-999999998-ab"))
    for folder in (old, own, fresh):
        folder.mkdir(parents=True)
        (folder / "tokens.bin").write_bytes(b"x")
        if folder is not fresh:
            os.utime(folder / "tokens.bin", (1, 1)), os.utime(folder, (1, 1))
    open_cache(data, vocab, "pretraining", place)
    assert not old.exists() and own.exists() and fresh.exists()


def test_a_large_vocabulary_takes_wider_numbers(ram_path, place, vocab):
    """The top bit says supervised; ids from 2^15 on need four bytes."""
    class Large:
        hash, state = "large", staticmethod(vocab.state)
        def __len__(self):
            return 1 << 15 | 1
    data = write_rows(ram_path / "a.jsonl", text_rows(5))
    wide, narrow = open_cache(data, Large(), "pretraining", place), open_cache(data, vocab, "pretraining", place)
    assert (wide.dtype, narrow.dtype) == (np.uint32, np.uint16)
    for (a, s), (b, t) in zip(documents(wide), documents(narrow), strict=True):
        assert (a == b).all() and (s == t).all()


def test_meta_says_what_was_read(ram_path, place, vocab):
    cache = open_cache(write_rows(ram_path / "a.jsonl", text_rows(5)), vocab, "pretraining", place)
    meta = json.loads((cache.folder / "meta.json").read_text(encoding="utf-8"))
    assert (meta["documents"], meta["rows"], meta["tokens"]) == (5, 5, len(cache.tokens)) and len(meta["digests"]) == 1

"""Flipped bits and truncations in what text becomes: vocabulary, token cache, kept tables. Found, or made again; never
used."""
import shutil

import numpy as np
import pytest

import toy
from file_faults import report, seeded
from tools.errors import UserError
from tools.vocab import Vocab
from train_agent.trainers.data import token_cache
from train_agent.trainers.data.disk_table import stored
from train_agent.trainers.data.token_cache import open_cache


def damages(path, flips, cuts):
    """(what is wrong, damaged bytes): `flips` single bits and `cuts` places at which the file ends."""
    raw, rng = path.read_bytes(), seeded(path.name)
    for where in (rng.randrange(len(raw) * 8) for _ in range(flips)):
        copy = bytearray(raw)
        copy[where // 8] ^= 1 << where % 8
        yield f"bit {where}", bytes(copy)
    for place in sorted({0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(cuts))}):
        yield f"cut at {place}", raw[:place]


def count_used(path, flips, cuts, use):
    """use() -> "refused", "made again" or "used"; -> how often each. The file is whole again afterwards."""
    raw, seen = path.read_bytes(), {"refused": 0, "made again": 0, "used": 0}
    for what, content in damages(path, flips, cuts):
        path.write_bytes(content)
        outcome = use()
        assert outcome != "used", (path.name, what)
        seen[outcome] += 1
    path.write_bytes(raw)
    return seen


def damaged_vocabulary(folder, flips, cuts):
    path = folder / "vocab.json"
    toy.toy_vocab().save(path)

    def use():
        try:
            Vocab.load_vocab(path)
        except UserError as error:
            assert error.code == 4
            return "refused"
        return "used"
    return count_used(path, flips, cuts, use)


def damaged_cache(folder, flips, cuts, monkeypatch):
    """Counts over the four files of a token cache and the list of data digests."""
    data, place, vocab = toy.write_rows(folder / "a.jsonl", toy.text_rows(40)), folder / "cache", toy.toy_vocab()
    cache = open_cache(data, vocab, "pretraining", place)
    good, built, real = {p.name: p.read_bytes() for p in cache.folder.iterdir()}, [], token_cache._build
    monkeypatch.setattr(token_cache, "_build", lambda *a: built.append(1) or real(*a))
    hashed, hash_file = [], token_cache.hashlib.file_digest
    monkeypatch.setattr(token_cache.hashlib, "file_digest", lambda *a: hashed.append(1) or hash_file(*a))

    def use():
        built.clear(), hashed.clear()
        again = open_cache(data, vocab, "pretraining", place)
        whole = again.folder == cache.folder and {p.name: p.read_bytes() for p in cache.folder.iterdir()} == good
        return "made again" if whole and (built or hashed) else "used"
    seen = {name: count_used(cache.folder / name, flips, cuts, use) for name in (*token_cache.FILES, "meta.json")}
    return seen | {"files.json": count_used(place / "files.json", flips, cuts, use)}


def damaged_table(folder, flips, cuts):
    made, table = [], np.arange(600, dtype=np.float32).reshape(200, 3)

    def make():
        made.append(1)
        return table
    stored("dpo", [1], folder / "tables", table.shape, make)
    (path,) = (folder / "tables").iterdir()

    def use():
        made.clear()
        same = np.array_equal(stored("dpo", [1], folder / "tables", table.shape, make), table)
        return "made again" if same and made else "used"
    return count_used(path, flips, cuts, use)


def check(folder, flips, cuts, monkeypatch):
    seen = {"vocabulary": damaged_vocabulary(folder, 2 * flips, cuts),
            **damaged_cache(folder, flips, cuts, monkeypatch),
            "kept table": damaged_table(folder, flips, cuts)}
    report(flips=8 * flips, **{name.replace(" ", "_"): counts for name, counts in seen.items()})


def test_every_flipped_bit_and_cut_is_found(ram_path, monkeypatch, capsys):
    check(ram_path, 25, 5, monkeypatch)


@pytest.mark.slow
def test_every_flipped_bit_and_cut_is_found_long(ram_path, monkeypatch, capsys):
    check(ram_path, 500, 150, monkeypatch)


def test_control_sizes_alone_let_every_flip_pass(ram_path, monkeypatch):
    """Control arm: a cache that is trusted when its sizes are right trains on other tokens without a word."""
    data, place, vocab = toy.write_rows(ram_path / "a.jsonl", toy.text_rows(40)), ram_path / "cache", toy.toy_vocab()
    cache = open_cache(data, vocab, "pretraining", place)
    monkeypatch.setattr(token_cache, "content_of", lambda folder: cache.meta["content"])
    good, used = np.array(cache.tokens), 0
    for _, content in damages(cache.folder / "tokens.bin", 50, 0):
        if len(content) == good.nbytes:
            (cache.folder / "tokens.bin").write_bytes(content)
            used += not np.array_equal(open_cache(data, vocab, "pretraining", place).tokens, good)
    report(control_flips=50, control_used=used)
    assert used == 50


def test_a_swapped_or_shortened_vocabulary_is_refused(ram_path):
    """Whole files, the JSON in good order: two entries swapped, one left out, another score."""
    import json
    path = ram_path / "vocab.json"
    toy.toy_vocab().save(path)
    good = json.loads(path.read_text(encoding="utf-8"))
    swapped, short, other = (json.loads(path.read_text(encoding="utf-8")) for _ in range(3))
    swapped["words"][3], swapped["words"][4] = swapped["words"][4], swapped["words"][3]
    short["words"].pop(), short["scores"].pop()
    other["scores"][0] -= 1
    for content in (swapped, short, other, {**good, "hash": "0" * 64}):
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        with pytest.raises(UserError) as error:
            Vocab.load_vocab(path)
        assert error.value.code == 4
    shutil.rmtree(ram_path / "cache", ignore_errors=True)

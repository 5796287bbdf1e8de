"""`hf:` data: folders and saved sets of the `datasets` package become JSON lines that everything else reads. No
network."""
import json
import sys
import types
from pathlib import Path

import pytest

import toy
from tools.reading import hub
from tools.errors import UserError
from tools.formats import read_rows
from train_agent.trainers import create_dataloader

ROWS = [{"text": f"第{i}行，苹果很好看。", "extra": i} for i in range(12)]
KEYS = {"hf_subset": None, "hf_split": "train", "hf_streaming": False}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def keys(ram_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(ram_path / "home")}.items():
        monkeypatch.setenv(name, value)
    return {**KEYS, "cache_dir": str(ram_path / "cache")}


@pytest.fixture
def folder(ram_path, keys):
    pytest.importorskip("datasets")
    place = ram_path / "my data"
    place.mkdir()
    toy.write_rows(place / "train.jsonl", ROWS)
    toy.write_rows(place / "test.jsonl", ROWS[:2])
    return place


def test_D11_a_local_folder_and_its_splits(folder, keys):
    path = hub.local_files(f"hf:{folder}", keys)
    assert [row["text"] for row in lines(path)] == [row["text"] for row in ROWS]
    held = hub.local_files([f"hf:{folder}#test", "plain.jsonl"], keys)
    assert len(lines(held[0])) == 2 and held[1] == "plain.jsonl"
    assert hub.local_files(None, keys) is None
    with pytest.raises(UserError) as error:
        hub.local_files(f"hf:{folder}#nothing", keys)
    assert error.value.code == 2 and "nothing" in str(error.value)


def test_D11_streaming_takes_only_what_a_run_can_use(folder, keys):
    path = hub.local_files(f"hf:{folder}", {**keys, "hf_streaming": True, "n_of_samples": 2, "n_of_samplings": 3})
    assert len(lines(path)) == 6
    assert len(lines(hub.local_files(f"hf:{folder}", {**keys, "hf_streaming": True}))) == 12


def test_what_save_to_disk_left(ram_path, keys):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(ram_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select(range(3))}).save_to_disk(str(ram_path / "both"))
    assert len(lines(hub.local_files(f"hf:{ram_path / 'one'}", keys))) == 12
    assert len(lines(hub.local_files(f"hf:{ram_path / 'both'}#test", keys))) == 3
    with pytest.raises(UserError) as error:
        hub.local_files(f"hf:{ram_path / 'both'}#dev", keys)
    assert "train test" in str(error.value)


def test_fetched_once_and_again_when_the_folder_changed(folder, keys, monkeypatch):
    first = hub.local_files(f"hf:{folder}", keys)
    with monkeypatch.context() as patched:
        patched.setattr(hub, "_open", lambda *_: pytest.fail("fetched again"))
        assert hub.local_files(f"hf:{folder}", keys) == first
    toy.write_rows(folder / "train.jsonl", ROWS + ROWS)
    again = hub.local_files(f"hf:{folder}", keys)
    assert again != first and len(lines(again)) == 24


def test_a_name_on_the_hub(keys, monkeypatch):
    """Without network: what the package is asked for, and that names, subsets, splits and limits are told apart."""
    asked, fake = [], types.ModuleType("datasets")
    fake.load_dataset = lambda name, subset, split, streaming: asked.append((name, subset, split, streaming)) or iter(
        ROWS)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    paths = {hub.local_files(spec, {**keys, **more}) for spec, more in (
        ("hf:a/b", {}), ("hf:a/c", {}), ("hf:a/b", {"hf_subset": "en"}), ("hf:a/b#validation", {}),
        ("hf:a/b", {"hf_streaming": True, "n_of_samples": 5, "n_of_samplings": 1}))}
    assert len(paths) == 5 and asked == [("a/b", None, "train", False), ("a/c", None, "train", False),
                                         ("a/b", "en", "train", False),
                                         ("a/b", None, "validation", False), ("a/b", None, "train", True)]
    assert all(Path(p).parent == Path(keys["cache_dir"], "hf") for p in paths)


def test_what_cannot_be_opened_or_is_empty_is_exit_2(keys, monkeypatch, ram_path):
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no route\nto host"))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for fails, said in (("hf:a/b", "no route"), ("hf:empty", "没有数据")):
        if fails == "hf:empty":
            fake.load_dataset = lambda *a, **k: iter(())
        with pytest.raises(UserError) as error:
            hub.local_files(fails, keys)
        assert error.value.code == 2 and said in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError) as error:
        hub.local_files("hf:a/b", keys)
    assert "pip install datasets" in str(error.value)
    assert not list(Path(keys["cache_dir"], "hf").iterdir()), "nothing half is left"


def test_D11_a_run_on_hf_data(folder, keys, options, vocab):
    chosen = options(rows=5, max_steps=2, cache_dir=keys["cache_dir"], json_data_path=f"hf:{folder}",
                     eval_data_path=f"hf:{folder}#test", eval_steps=1)
    loop = toy.train(chosen)
    assert loop.exit == 0 and len(loop.stage.train.cache) == 12 and len(loop.stage.held["held"].cache) == 2
    assert toy.checkpoint(
        chosen, "TinySeek_Pre_final")["run"]["json_data_path"] == f"hf:{folder}", "the configuration keeps the name"
    batches = list(
        create_dataloader(str(folder), vocab, cache_dir=keys["cache_dir"], training_mode="pretraining", max_length=64))
    assert sum(int((b["positions"] == 0)[b["valid"]].sum()) for b in batches) == 12


def test_one_parquet_file_and_what_the_refusal_of_it_advises(ram_path, keys):
    datasets = pytest.importorskip("datasets")
    path = ram_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    with pytest.raises(UserError, match="hf:"):
        list(read_rows(path))
    assert [row["text"] for row in lines(hub.local_files(f"hf:{path}", keys))] == [row["text"] for row in ROWS]

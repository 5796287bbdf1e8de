"""The configuration's files: paths, formats, presets, and what a resume compares."""
import builtins
import json
import os
from pathlib import Path

import pytest

from tools.config.compare import compare, fingerprint
from tools.config.keys import KEYS, STAGES, default_of
from tools.config_manager import ROOT, ConfigManager
from toy_config import make, refused          # noqa: F401 (a fixture)


# ---------------------------------------------------------------- paths

def test_paths_in_the_file_count_from_the_file(make):
    config = make({"out_dir": "o", "pre": {"json_data_path": ["a.jsonl", "../b*.jsonl"]}, "log_file": "l.txt"}).config
    assert config["out_dir"] == str(make.folder / "o") and config["log_file"] == str(make.folder / "l.txt")
    assert config["pre"]["json_data_path"] == [str(make.folder / "a.jsonl"), str(make.folder.parent / "b*.jsonl")]


def test_paths_on_the_command_line_count_from_the_current_folder(make):
    config = make({"out_dir": "o"}, stage="pre",
                  overrides={"out_dir": "o", "json_data_path": "d.jsonl", "eval_data_path": "none"}).config
    assert config["out_dir"] == str(make.elsewhere / "o")
    assert config["pre"]["json_data_path"] == str(make.elsewhere
                                                  / "d.jsonl") and config["pre"]["eval_data_path"] is None


def test_default_paths_count_from_the_project_and_follow_out_dir(make):
    config = make().config
    assert config["out_dir"] == str(ROOT / "out") and config["pre"]["json_data_path"] == str(ROOT / "data"
        / "demo_pre.jsonl")
    config = make({"out_dir": "o"}).config
    out = make.folder / "o"
    assert config["cache_dir"] == str(out / "cache") and config["pre"]["vocab_trg_path"] == str(out / "vocab.json")
    assert config["sft"]["pretraining_model_path"] == str(out / "TinySeek_Pre_final.pkl")
    assert config["lora"]["pretraining_model_path"] == str(out / "TinySeek_SFT_final.pkl")
    config = make({"sft": {"pretraining_model_path": "{out_dir}/best.pkl"}}, overrides={"out_dir": "p"}).config
    assert config["sft"]["pretraining_model_path"] == str(make.elsewhere / "p" / "best.pkl")


def test_every_path_is_absolute(make):
    config = make({"replay_data_path": "r", "gate": {"experts": ["a.pkl", "b.pkl"]}, "resume": "c.pkl"}).config
    for place in (config, *(config[stage] for stage in STAGES)):
        for name, value in place.items():
            if name in KEYS and KEYS[name].kind in ("path", "paths"):
                for one in value if isinstance(value, list) else [value]:
                    assert one is None or os.path.isabs(one), name


def test_none_hub_names_home_and_windows_paths(make, monkeypatch):
    monkeypatch.setenv("HOME", str(make.elsewhere))
    monkeypatch.setenv("USERPROFILE", str(make.elsewhere))
    sft = make(
        {
            "sft": {"pretraining_model_path": "none", "json_data_path": "hf:someone/rows",
                    "init_from": "~/a.pkl"}}).config["sft"]
    assert sft["pretraining_model_path"] is None and sft["json_data_path"] == "hf:someone/rows"
    assert sft["init_from"] == str(make.elsewhere / "a.pkl")
    assert make({"pre": {"init_from": "out\\x.pkl"}}).config["pre"]["init_from"] == str(make.folder / "out" / "x.pkl")


def test_a_folder_with_brackets_is_no_pattern(tmp_path):
    folder = tmp_path / "my [data]"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl", "[c].jsonl"):
        (folder / name).write_text("{}")
    (folder / "c.json").write_text(json.dumps({"pre": {"json_data_path": ["*.jsonl", "[c].jsonl"]}}))
    pattern, plain = ConfigManager(folder / "c.json").config["pre"]["json_data_path"]
    import glob
    assert len(glob.glob(pattern)) == 3 and os.path.isfile(plain)


def test_the_vocabulary_is_built_from_the_training_data(make):
    demo = [str(ROOT / "data" / name) for name in ("demo_pre.jsonl", "demo_sft.jsonl")]
    assert make().config["pre"]["vocab_data_path"] == demo
    mine = str(make.elsewhere / "m.jsonl")
    assert make(stage="pre", overrides={"json_data_path": "m.jsonl"}).config["pre"]["vocab_data_path"] == [mine]
    both = make(
        {"pre": {"json_data_path": "a"}, "sft": {"json_data_path": ["b", "a"]}}).config["pre"]["vocab_data_path"]
    assert both == [str(make.folder / "a"), str(make.folder / "b")]
    assert make(overrides={"vocab_data_path": "v"}).config["pre"]["vocab_data_path"] == str(make.elsewhere / "v")


# ---------------------------------------------------------------- files

def test_the_file_is_looked_for_here_and_then_in_the_project(make):
    assert Path(ConfigManager("model_config.json").path) == ROOT / "model_config.json"
    (make.elsewhere / "model_config.json").write_text('{"n_layer": 3}')
    assert ConfigManager().config["n_layer"] == 3
    refused(lambda *_a, **_k: ConfigManager("no.json"), None, "no.json")


@pytest.mark.parametrize("text, words", [
    ("", ["第 1 行"]), ("{\n'n_layer': 2}", ["第 2 行"]), ('{"n_layer": 2,}', ["JSON"]), ("[1]", ["最外层"]),
    ('{"n_layer": 2, "n_layer": 3}', ["n_layer", "两次"]),
    ('{"n_layer": NaN}', ["n_layer"]), ('{"dropout": Infinity}', ["dropout"]), ("[" * 100000, []),
    ('{"n_layer": 1e999}', ["n_layer"]),
])
def test_a_damaged_file_is_explained(make, text, words):
    refused(make, text, *words)


def test_bom_is_fine_and_other_encodings_are_not(make):
    assert make("\ufeff" + '{"n_layer": 3}').config["n_layer"] == 3
    path = make.folder / "gbk.json"
    path.write_bytes('{"name": "实验"}'.encode("gbk"))
    refused(lambda *_a, **_k: ConfigManager(path), None, "UTF-8")
    refused(lambda *_a, **_k: ConfigManager(make.folder), None)


def test_T7_yaml_is_read_when_pyyaml_is_there(make):
    pytest.importorskip("yaml")
    text = "n_layer: 3\nmixed_precision: no\npre:\n  init_lr: 2e-4\n  max_steps: null\n  json_data_path: a.jsonl\n"
    config = make(text, name="c.yaml").config
    assert (config["n_layer"], config["mixed_precision"], config["pre"]["init_lr"]) == (3, "no", 2e-4)
    assert config["pre"]["json_data_path"] == str(make.folder / "a.jsonl")
    refused(make, "a: [1", "YAML", name="d.yml")
    assert make("", name="e.yml").config["n_layer"] == 4
    for text in ("n_layer: 3\nn_layer: 5\n", "n_layer: 3\nn_layer: 3\n", "pre:\n  seed: 1\n  seed: 2\n",
                 "presets: {a: {n_layer: 1}, a: {n_layer: 2}}"):
        refused(make, text, "两次", "行", name="d.yml")
    assert make("presets:\n  a: &a {n_layer: 6}\n  b: {<<: *a}\n", name="e.yml", preset="b").config["n_layer"] == 6


def test_T7_yaml_without_pyyaml_says_what_to_do(make, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__",
                        lambda name, *rest: (_ for _ in ()).throw(ImportError()) if name == "yaml"
                        else real(name, *rest))
    refused(make, "n_layer: 3", "PyYAML", "pip install", name="c.yaml")


# ---------------------------------------------------------------- one set of defaults

def test_an_empty_file_is_no_file(make):
    """What a user's own file does not say is as without it, in every stage and preset, from JSON, YAML and Python."""
    for preset in (None, "fast", "gpt2"):
        plain = ConfigManager(ROOT / "model_config.json", preset=preset).config
        assert make({}, preset=preset).config == make("", name="e.yml", preset=preset).config == ConfigManager({},
            preset=preset).config == plain
    assert make({"lora": {"rank": 4}}).config["lora"]["forget_penalty"] == 50


def test_the_usual_preset_lies_below_the_users_file(make):
    """run.py takes tiny where nobody says otherwise; an empty file of one's own changes nothing there, either."""
    plain = ConfigManager(ROOT / "model_config.json", usual="tiny").config
    assert plain["token_kind"] == "char" and make({}, usual="tiny").config == plain
    assert make({"token_kind": "jieba"}, usual="tiny").config["token_kind"] == "jieba"
    assert make({}, usual="tiny", preset="moe").config["token_kind"] == "jieba"
    assert make({"base": None}, usual="tiny").config["token_kind"] == "jieba"


def test_the_table_says_what_the_shipped_file_says():
    raw = json.loads((ROOT / "model_config.json").read_text(encoding="utf-8"))
    for name, value in raw.items():
        if name in STAGES:
            assert {key: default_of(key, name) for key in value} == value, name
        elif name != "presets":
            assert default_of(name) == value, name
    shipped, bare = ConfigManager(ROOT / "model_config.json").config, ConfigManager({"base": None}).config
    assert {**bare, "presets": 0} == {**shipped, "presets": 0}


def test_an_edited_shipped_file_lies_below_every_other(make, monkeypatch):
    (make.elsewhere / "model_config.json").write_text(
        '{"n_layer": 3, "sft": {"init_lr": 1e-4}, "presets": {"own": {"n_layer": 9}}}')
    monkeypatch.setattr("tools.config_manager.ROOT", make.elsewhere)
    config = make({"sft": {"batch_size": 2}, "presets": {"mine": {"n_layer": 7}}}).config
    assert (config["n_layer"], config["sft"]["init_lr"], config["sft"]["batch_size"]) == (3, 1e-4, 2)
    assert [make({"presets": {"mine": {"n_layer": 7}}}, preset=name).config["n_layer"]
            for name in ("own", "mine")] == [9, 7]
    assert make({"base": None}).config["n_layer"] == 4 and make({"batch_size": 2}).config["sft"]["batch_size"] == 2
    refused(make, {"base": "other.json"}, "base", "null")
    refused(make, {"base": None}, "own", preset="own")


# ---------------------------------------------------------------- presets

def test_the_shipped_file_and_each_of_its_presets_are_valid():
    raw = json.loads((ROOT / "model_config.json").read_text(encoding="utf-8"))
    assert {"tiny", "small", "medium", "moe", "gpt2", "minimind", "fast"} <= set(raw["presets"])
    for preset in (None, *raw["presets"]):
        for stage in (None, *STAGES):
            ConfigManager(ROOT / "model_config.json", preset=preset, stage=stage)


def test_presets_are_what_they_are_called():
    small, medium, moe, gpt2, minimind = (ConfigManager(ROOT / "model_config.json", preset=name).config
                                          for name in ("small", "medium", "moe", "gpt2", "minimind"))
    assert small["n_layer"] in (1, 2) and 8 <= small["pre"]["batch_size"] <= 16
    assert small["pre"]["accumulation_steps"] == 2 and small["pre"]["init_lr"] == 5e-4
    assert medium["n_layer"] == 6 and 16 <= medium["pre"]["batch_size"] <= 32 and 2 <= medium["pre"][
        "accumulation_steps"] <= 4
    assert (moe["other_experts"], moe["shared_experts"]) == (16, 2)
    assert (gpt2["position"], gpt2["norm"], gpt2["activation"], gpt2["attention"], gpt2["use_moe"]) == ("learned",
        "layer", "gelu", "gqa", False)
    assert gpt2["n_kv_head"] == gpt2["n_head"] and gpt2["max_position"] >= gpt2["pre"]["max_len"]
    assert (minimind["attention"], minimind["norm"], minimind["activation"], minimind["use_moe"]) == ("gqa", "rms",
        "swiglu", False)


def test_presets_of_the_project_serve_a_file_without_presets(make):
    assert make({"n_layer": 9}, preset="medium").config["n_layer"] == 6
    refused(make, None, "medium", "moe", preset="medum")


def test_preset_values_are_checked_also_when_not_asked_for(make):
    refused(make, {"presets": {"a": {"n_layer": "x"}}}, "presets.a.n_layer")
    refused(make, {"presets": {"a": {"n_head": 7}}}, "n_head", preset="a")


# ---------------------------------------------------------------- resume

def test_fingerprint_is_grouped_and_leaves_out_what_may_change(make):
    groups = fingerprint(make().stage("sft"))
    assert groups["model"]["d_model"] == 192 and groups["optimizer"]["optimizer"] == "muon"
    assert groups["schedule"]["init_lr"] == 2e-3 and "json_data_path" in groups["data"]
    flat = {key for group in groups.values() for key in group}
    assert not flat & {"logging_steps", "save_steps", "eval_steps", "num_workers", "log_file", "log_dir", "out_dir",
                       "device", "threads", "dry_run"}
    assert fingerprint(json.loads(json.dumps(make().stage("sft")))) == groups


@pytest.mark.parametrize("change, verdict", [
    ({"d_model": 96}, "never"), ({"max_len": 64}, "never"), ({"optimizer": "sgd"}, "never"), ({"seed": 1}, "never"),
    ({"json_data_path": "x.jsonl"}, "never"),
    ({"init_lr": 1e-3}, "ask"), ({"batch_size": 2}, "ask"), ({"weight_decay": 0.0}, "ask"), ({"dropout": 0.1}, "ask"),
    ({"scheduler": "constant"}, "ask"),
    ({"max_steps": 200}, "ok"), ({"max_steps": None}, "ok"), ({"max_steps": 50}, "ask"), ({"max_epochs": 3}, "ok"),
    ({"logging_steps": 1, "num_workers": 3, "save_steps": 7, "log_file": "y", "threads": 1, "save_total_limit": None},
     None),
])
def test_compare_tells_what_a_resume_may_change(make, change, verdict):
    old = make({"max_steps": 100}).stage("sft")
    new = make({"max_steps": 100, **change}).stage("sft")
    found = compare(fingerprint(old), fingerprint(new))
    assert [one.verdict for one in found] == ([verdict] if verdict else [])
    if verdict:
        key = next(iter(change))
        assert (found[0].key, found[0].old, found[0].new) == (key, old[key], new[key])


def test_compare_ignores_where_the_folder_lies_and_keys_that_came_later(make):
    old, new = make().stage("sft"), make().stage("sft")
    new["json_data_path"] = "D:\\elsewhere\\" + os.path.basename(old["json_data_path"])
    assert compare(fingerprint(old), fingerprint(new)) == []
    older = fingerprint(old)
    del older["model"]["norm_eps"]
    assert compare(older, fingerprint(new)) == []

"""The configuration: order of the layers, types, laws between keys, paths, presets, and what a resume compares."""
import builtins
import json
import os
import random
from pathlib import Path

import pytest

from tools.config_compare import compare, fingerprint
from tools.config_keys import KEYS, MODEL_KEYS, RUN_KEYS, STAGES, default_of, stage_keys
from tools.config_manager import ROOT, ConfigManager
from tools.config_values import check_value
from tools.errors import UserError


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make({...}, overrides=…) -> ConfigManager over a file with that content; the current folder is another one."""
    folder = tmp_path / "项目 one"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def build(content=None, name="model_config.json", **keywords):
        text = content if isinstance(content, str) else json.dumps(content or {}, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
        return ConfigManager(folder / name, **keywords)

    build.folder, build.elsewhere = folder, elsewhere
    return build


def refused(make, content=None, *words, **keywords):
    """The message of the UserError that this configuration must raise, containing `words`."""
    with pytest.raises(UserError) as caught:
        make(content, **keywords)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message and any("\u4e00" <= c <= "\u9fff" for c in message)
    for word in words:
        assert word in message, message
    return message


# ---------------------------------------------------------------- order

def test_T2_order_defaults_file_preset_command_line(make):
    content = {"n_layer": 2, "n_head": 4, "d_model": 128, "presets": {"big": {"n_layer": 5, "n_head": 16}}}
    assert make().config["n_layer"] == KEYS["n_layer"].default
    assert make(content).config["n_layer"] == 2
    config = make(content, preset="big", overrides={"n_layer": "7"}).config
    assert (config["n_layer"], config["n_head"], config["d_model"]) == (7, 16, 128)


def test_T2_a_bare_stage_key_of_a_higher_layer_beats_a_section_of_a_lower_one(make):
    content = {"pre": {"batch_size": 3}, "presets": {"p": {"batch_size": 6, "sft": {"batch_size": 5}}}}
    assert make(content).config["pre"]["batch_size"] == 3
    config = make(content, preset="p").config
    assert [config[stage]["batch_size"] for stage in ("pre", "sft", "lora")] == [6, 5, 6]


def test_T2_within_one_layer_the_section_beats_the_bare_key(make):
    config = make({"batch_size": 4, "sft": {"batch_size": 2}}).config
    assert (config["pre"]["batch_size"], config["sft"]["batch_size"]) == (4, 2)
    config = make(overrides={"sft.batch_size": "9", "batch_size": "7"}).config
    assert (config["pre"]["batch_size"], config["sft"]["batch_size"]) == (7, 9)


def test_T2_a_bare_command_line_key_is_for_the_running_stage_or_for_all(make):
    config = make(stage="sft", overrides={"batch_size": "4"}).config
    assert config["sft"]["batch_size"] == 4 and config["pre"]["batch_size"] == default_of("batch_size")
    assert all(make(overrides={"batch_size": "4"}).config[stage]["batch_size"] == 4 for stage in STAGES)


def test_a_key_of_another_stage(make):
    refused(make, None, "--memory_lr", "memory", stage="pre", overrides={"memory_lr": "1e-4"})
    assert make({"memory_lr": 1e-4}, stage="pre").config["memory"]["memory_lr"] == 1e-4
    assert make(stage="pre", overrides={"memory.memory_lr": "1e-4"}).config["memory"]["memory_lr"] == 1e-4
    refused(make, {"pre": {"memory_lr": 1e-4}}, "pre.memory_lr")
    refused(make, {"sft": {"n_layer": 3}}, "sft.n_layer", "最外层")


def test_T2_every_contract_key_is_there_with_its_default(make):
    config = make().config
    assert set(config) == {*MODEL_KEYS, *RUN_KEYS, *STAGES, "presets"}
    top = "vocab_size device n_layer pad_idx n_head d_model d_c d_r hidden other_experts shared_experts keep ro_theta dropout scale alpha"
    assert set(top.split()) <= set(config)
    section = ("json_data_path vocab_data_path vocab_trg_path eval_data_path eval_share max_len batch_size accumulation_steps num_workers "
               "prefetch_factor max_epochs max_steps n_of_samples n_of_samplings init_lr min_lr decay scheduler warmup_index warmup_steps "
               "keep_temp_index optimizer weight_decay max_norm seed save_frq save_steps eval_steps logging_steps last_index "
               "pretraining_model_path")
    for stage in STAGES:
        assert set(section.split()) <= set(config[stage]), stage


def test_S1_S2_O1_rates_of_the_tinyseek_stages(make):
    pre, sft = make().config["pre"], make().config["sft"]
    assert (pre["init_lr"], pre["min_lr"], pre["decay"]) == (5e-4, 1e-7, 0.9995)
    assert (sft["init_lr"], sft["min_lr"], sft["decay"]) == (5e-5, 5e-7, 0.99995)
    assert pre["scheduler"] == "exponential" and pre["warmup_index"] == pre["keep_temp_index"] == -1 and pre["optimizer"] == "adam"


def test_stage_gives_one_flat_dict(make):
    manager = make({"n_layer": 2, "sft": {"batch_size": 3}}, stage="sft")
    flat = manager.stage()
    assert flat == manager.stage("sft")
    assert (flat["n_layer"], flat["batch_size"], flat["device"]) == (2, 3, "auto")
    assert set(flat) == {*MODEL_KEYS, *RUN_KEYS, *stage_keys("sft")} and "rank" not in flat
    assert manager.stage("lora")["rank"] == 8 and manager.stage("dpo")["beta"] == 0.1
    json.dumps(flat)
    with pytest.raises(UserError):
        manager.stage("sftt")
    with pytest.raises(UserError):
        make(stage="pretrain")


def test_model_keys_are_those_of_the_network(make):
    model_config = pytest.importorskip("model.config")
    manager = make()
    assert set(manager.model()) == set(model_config.MODEL_KEYS)
    assert model_config.ModelConfig.from_dict(manager.model()).to_dict() == manager.model()
    for key, choices in model_config.CHOICES.items():
        assert KEYS[key].choices == choices


def test_two_managers_share_nothing(make):
    first = make()
    first.config["gate"]["experts"].append("x")
    first.config["pre"]["vocab_data_path"].append("x")
    second = make()
    assert second.config["gate"]["experts"] == [] and "x" not in second.config["pre"]["vocab_data_path"]
    assert "x" not in first.config["sft"]["vocab_data_path"]


# ---------------------------------------------------------------- names and types

@pytest.mark.parametrize("content, said, hint", [
    ({"n_layers_": 2}, "n_layers_", "n_layer"), ({"batchsize": 2}, "batchsize", "batch_size"), ({"pre": {"batch_sise": 2}}, "pre.batch_sise", "batch_size"),
    ({"presets": {"p": {"kep": 2}}}, "presets.p.kep", "keep"), ({"training": {"warmup_step": 1}}, "training.warmup_step", "warmup_steps"),
    ({"sfft": {"batch_size": 1}}, "sfft", "sft"), ({"zzzzqqq": 1}, "zzzzqqq", "--help"),
])
def test_unknown_keys_name_the_nearest(make, content, said, hint):
    refused(make, content, said, hint)


@pytest.mark.parametrize("key, value", [
    ("n_layer", 2.5), ("n_layer", True), ("n_layer", "two"), ("n_layer", None), ("n_layer", [2]), ("n_layer", 0), ("n_layer", -1),
    ("dropout", "x"), ("dropout", True), ("dropout", float("nan")), ("dropout", float("inf")), ("dropout", 1.0), ("dropout", -0.1),
    ("use_moe", 1), ("use_moe", "true"), ("use_moe", None), ("activation", "swish2"), ("activation", 3), ("activation", None),
    ("scheduler", "cosinus"), ("optimizer", "adamm"), ("json_data_path", 3), ("json_data_path", [1]), ("json_data_path", []),
    ("json_data_path", ""), ("out_dir", None), ("out_dir", "none"), ("out_dir", "a\0b"), ("init_lr", 0), ("init_lr", "1e-"), ("init_lr", "nan"),
    ("text_field", [None]), ("device", "gpu"), ("device", 0), ("tracker", "mlflow"), ("name", "a/b"), ("name", ".."), ("name", "a:b"),
    ("name", " a"), ("seed", -1), ("seed", 2 ** 64), ("vocab_size", 100), ("pad_idx", 1), ("decay", 1.5), ("decay", 0), ("pre", 3), ("pre", None),
    ("training", [1]), ("presets", [1]), ("presets", {"a": 1}), ("batch_size", {"a": 1}), ("mixed_precision", True), ("resume", 3),
])
def test_wrong_values_are_refused_by_name(make, key, value):
    refused(make, {key: value}, key)


@pytest.mark.parametrize("key, value, expected", [
    ("init_lr", "2e-4", 2e-4), ("init_lr", "1E-3", 1e-3), ("n_layer", "6", 6), ("n_layer", 3.0, 3), ("ro_theta", 500, 500.0), ("max_steps", "1e4", 10000),
    ("max_steps", "none", None), ("max_steps", None, None), ("d_q", "null", None), ("mixed_precision", False, "no"), ("compile", True, "yes"),
    ("compile", False, "no"), ("tracker", None, "none"), ("tracker", False, "none"), ("scheduler", "Cosine", "cosine"), ("resume", None, "none"),
    ("resume", False, "none"), ("resume", "AUTO", "auto"), ("experts", None, []), ("text_field", ["a", "b"], ["a", "b"]), ("memory_layers", 2, [2]),
    ("memory_layers", ["0", 3], [0, 3]), ("fsdp_sharding", "full_shard", "FULL_SHARD"),
])
def test_values_as_json_and_yaml_write_them(make, key, value, expected):
    stage = KEYS[key].stages[0]
    found = make({key: value}).stage(stage)[key]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("key, text, expected", [
    ("use_moe", "false", False), ("use_moe", "YES", True), ("save_best_model", "0", False), ("init_lr", "1e-4", 1e-4), ("max_steps", "none", None),
    ("max_steps", "null", None), ("text_field", "a,b", ["a", "b"]), ("text_field", '["a","b"]', ["a", "b"]), ("text_field", "a", "a"),
    ("text_field", ["a", "b"], ["a", "b"]), ("name", "none", None), ("sliding_window", "64", 64), ("seed", "1_000", 1000), ("tracker", "none", "none"),
])
def test_values_as_the_command_line_writes_them(make, key, text, expected):
    found = make(overrides={key: text}).stage("pre")[key]
    assert found == expected and type(found) is type(expected)


def test_memory_layers_and_lists_on_the_command_line(make):
    assert make(overrides={"memory_layers": "0,2"}).config["memory"]["memory_layers"] == [0, 2]
    assert make(overrides={"lora.lora_targets": "attention,router"}).config["lora"]["lora_targets"] == ["attention", "router"]
    refused(make, None, "--use_moe", overrides={"use_moe": "maybe"})
    refused(make, None, "--n_layer", overrides={"n_layer": "2.5"})


def test_no_value_of_any_kind_ends_in_another_exception():
    rng = random.Random(0)
    odd = [None, True, False, 0, 1, -1, 2.5, 1e400, -0.0, 10 ** 40, "", " ", "x", "1", "none", "null", "true", "1e-4", "1e999", "\0", "\ud800", "[", "[1",
           "hf:", "~", "*", "{out_dir}", "{}", [], [[]], [None], ["a"], [1, 2], {}, {"a": 1}, (1,), b"x", {1}]
    for name in KEYS:
        for value in odd + [rng.choices(odd, k=2) for _ in range(20)]:
            try:
                check_value(name, value)
            except UserError as error:
                assert name in str(error)


def test_C7_C5_cadences_are_positive_or_null(make):
    for key in ("save_frq", "save_steps", "eval_steps", "logging_steps", "save_total_limit"):
        assert make({key: None}).config["pre"][key] is None
        assert make({key: 1}).config["pre"][key] == 1
        for value in (0, -1, 2.5, True):
            refused(make, {key: value}, key)
    defaults = make().config["pre"]
    assert (defaults["logging_steps"], defaults["eval_steps"], defaults["save_steps"], defaults["save_total_limit"]) == (10, 500, 500, 3)
    assert defaults["save_frq"] is None


def test_S3_S4_unknown_scheduler_or_optimizer_lists_the_choices(make):
    refused(make, {"sft": {"scheduler": "step"}}, "exponential", "cosine", "linear", "constant")
    refused(make, {"optimizer": "lion"}, "adam", "adamw", "sgd", "muon")
    for name in ("exponential", "cosine", "linear", "constant"):
        assert make({"scheduler": name}).config["pre"]["scheduler"] == name


def test_D6_chunk_keys(make):
    pre = make({"pre": {"n_of_samples": 100, "n_of_samplings": 3}}).config["pre"]
    assert (pre["n_of_samples"], pre["n_of_samplings"]) == (100, 3)
    refused(make, {"n_of_samples": 0}, "n_of_samples")


# ---------------------------------------------------------------- laws between keys

@pytest.mark.parametrize("content, words", [
    ({"n_head": 7}, ["n_head", "d_model"]),
    ({"d_r": 15}, ["d_r"]),
    ({"keep": 9}, ["keep", "other_experts"]),
    ({"shared_experts": 0}, ["shared_experts"]),
    ({"n_kv_head": 2}, ["n_kv_head", "gqa"]),
    ({"attention": "gqa", "n_kv_head": 3}, ["n_kv_head", "n_head"]),
    ({"attention": "gqa", "d_model": 40, "n_head": 8}, ["偶数"]),
    ({"n_dense_layer": 5}, ["n_dense_layer"]),
    ({"min_lr": 1e-2}, ["min_lr", "init_lr"]),
    ({"pre": {"warmup_index": 2, "warmup_steps": 5}}, ["pre", "warmup_index", "warmup_steps"]),
    ({"pre": {"init_from": "a.pkl"}, "resume": "b.pkl"}, ["init_from", "resume"]),
    ({"pre": {"init_from": "a.pkl", "last_index": 3}}, ["init_from", "last_index"]),
    ({"pre": {"early_stopping": True, "eval_steps": None}}, ["early_stopping", "eval_steps"]),
    ({"pre": {"early_stopping": True, "eval_share": 0}}, ["early_stopping", "eval_share"]),
    ({"position": "learned", "max_position": 64}, ["max_position", "max_len"]),
    ({"lora": {"rank": 0}}, ["rank"]),
    ({"memory": {"memory_tokens": 10}}, ["memory_chapters"]),
    ({"memory": {"memory_topk": 9}}, ["memory_topk"]),
])
def test_laws_between_keys(make, content, words):
    refused(make, content, *words)


@pytest.mark.parametrize("content", [
    {"use_moe": False, "keep": 99}, {"use_moe": False, "shared_experts": 0}, {"attention": "gqa", "n_kv_head": 1, "d_r": 3},
    {"keep": 8}, {"scheduler": "cosine", "min_lr": 1}, {"n_dense_layer": 4}, {"attention": "gqa", "position": "alibi", "d_model": 40},
    {"device": "cuda:1"}, {"name": "实验 1"}, {"memory": {"rank": 4}},
])
def test_laws_leave_alone_what_works(make, content):
    make(content)


def test_learned_positions_reach_as_far_as_the_longest_row(make):
    assert make({"position": "learned", "sft": {"max_len": 700}}).config["max_position"] == 700
    assert make().config["max_position"] is None


# ---------------------------------------------------------------- paths

def test_paths_in_the_file_count_from_the_file(make):
    config = make({"out_dir": "o", "pre": {"json_data_path": ["a.jsonl", "../b*.jsonl"]}, "log_file": "l.txt"}).config
    assert config["out_dir"] == str(make.folder / "o") and config["log_file"] == str(make.folder / "l.txt")
    assert config["pre"]["json_data_path"] == [str(make.folder / "a.jsonl"), str(make.folder.parent / "b*.jsonl")]


def test_paths_on_the_command_line_count_from_the_current_folder(make):
    config = make({"out_dir": "o"}, stage="pre", overrides={"out_dir": "o", "json_data_path": "d.jsonl", "eval_data_path": "none"}).config
    assert config["out_dir"] == str(make.elsewhere / "o")
    assert config["pre"]["json_data_path"] == str(make.elsewhere / "d.jsonl") and config["pre"]["eval_data_path"] is None


def test_default_paths_count_from_the_project_and_follow_out_dir(make):
    config = make().config
    assert config["out_dir"] == str(ROOT / "out") and config["pre"]["json_data_path"] == str(ROOT / "data" / "demo_pre.jsonl")
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
    sft = make({"sft": {"pretraining_model_path": "none", "json_data_path": "hf:someone/rows", "init_from": "~/a.pkl"}}).config["sft"]
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
    both = make({"pre": {"json_data_path": "a"}, "sft": {"json_data_path": ["b", "a"]}}).config["pre"]["vocab_data_path"]
    assert both == [str(make.folder / "a"), str(make.folder / "b")]
    assert make(overrides={"vocab_data_path": "v"}).config["pre"]["vocab_data_path"] == str(make.elsewhere / "v")


# ---------------------------------------------------------------- files

def test_the_file_is_looked_for_here_and_then_in_the_project(make):
    assert Path(ConfigManager("model_config.json").path) == ROOT / "model_config.json"
    (make.elsewhere / "model_config.json").write_text('{"n_layer": 3}')
    assert ConfigManager().config["n_layer"] == 3
    refused(lambda *_a, **_k: ConfigManager("no.json"), None, "no.json")


@pytest.mark.parametrize("text, words", [
    ("", ["第 1 行"]), ("{\n'n_layer': 2}", ["第 2 行"]), ('{"n_layer": 2,}', ["JSON"]), ("[1]", ["最外层"]), ('{"n_layer": 2, "n_layer": 3}', ["n_layer", "两次"]),
    ('{"n_layer": NaN}', ["n_layer"]), ('{"dropout": Infinity}', ["dropout"]), ("[" * 100000, []), ('{"n_layer": 1e999}', ["n_layer"]),
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


def test_T7_yaml_without_pyyaml_says_what_to_do(make, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__",
                        lambda name, *rest: (_ for _ in ()).throw(ImportError()) if name == "yaml" else real(name, *rest))
    refused(make, "n_layer: 3", "PyYAML", "pip install", name="c.yaml")


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
    assert medium["n_layer"] == 6 and 16 <= medium["pre"]["batch_size"] <= 32 and 2 <= medium["pre"]["accumulation_steps"] <= 4
    assert (moe["other_experts"], moe["shared_experts"]) == (16, 2)
    assert (gpt2["position"], gpt2["norm"], gpt2["activation"], gpt2["attention"], gpt2["use_moe"]) == ("learned", "layer", "gelu", "gqa", False)
    assert gpt2["n_kv_head"] == gpt2["n_head"] and gpt2["max_position"] >= gpt2["pre"]["max_len"]
    assert (minimind["attention"], minimind["norm"], minimind["activation"], minimind["use_moe"]) == ("gqa", "rms", "swiglu", False)


def test_presets_of_the_project_serve_a_file_without_presets(make):
    assert make({"n_layer": 9}, preset="medium").config["n_layer"] == 6
    refused(make, None, "medium", "moe", preset="medum")


def test_preset_values_are_checked_also_when_not_asked_for(make):
    refused(make, {"presets": {"a": {"n_layer": "x"}}}, "presets.a.n_layer")
    refused(make, {"presets": {"a": {"n_head": 7}}}, "n_head", preset="a")


# ---------------------------------------------------------------- resume

def test_fingerprint_is_grouped_and_leaves_out_what_may_change(make):
    groups = fingerprint(make().stage("sft"))
    assert groups["model"]["d_model"] == 256 and groups["optimizer"]["optimizer"] == "adam"
    assert groups["schedule"]["init_lr"] == 5e-5 and "json_data_path" in groups["data"]
    flat = {key for group in groups.values() for key in group}
    assert not flat & {"logging_steps", "save_steps", "eval_steps", "num_workers", "log_file", "log_dir", "out_dir", "device", "threads", "dry_run"}
    assert fingerprint(json.loads(json.dumps(make().stage("sft")))) == groups


@pytest.mark.parametrize("change, verdict", [
    ({"d_model": 128}, "never"), ({"max_len": 64}, "never"), ({"optimizer": "sgd"}, "never"), ({"seed": 1}, "never"), ({"json_data_path": "x.jsonl"}, "never"),
    ({"init_lr": 1e-3}, "ask"), ({"batch_size": 2}, "ask"), ({"weight_decay": 0.0}, "ask"), ({"dropout": 0.1}, "ask"), ({"scheduler": "cosine"}, "ask"),
    ({"max_steps": 200}, "ok"), ({"max_steps": None}, "ok"), ({"max_steps": 50}, "ask"), ({"max_epochs": 2}, "ok"),
    ({"logging_steps": 1, "num_workers": 3, "save_steps": 7, "log_file": "y", "threads": 1, "save_total_limit": None}, None),
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

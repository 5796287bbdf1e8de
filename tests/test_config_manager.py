"""The configuration: order of the layers, types, laws between keys."""
import json
import random

import pytest

from tools.config.keys import KEYS, MODEL_KEYS, RUN_KEYS, STAGES, default_of, stage_keys
from tools.config.values import check_value
from tools.errors import UserError
from toy_config import make, refused          # noqa: F401 (a fixture)


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
    top = ("vocab_size device n_layer pad_idx n_head d_model d_c d_r hidden other_experts shared_experts keep "
           "ro_theta dropout scale alpha")
    assert set(top.split()) <= set(config)
    section = (
        "json_data_path vocab_data_path vocab_trg_path eval_data_path eval_share max_len batch_size accumulation_steps "
        "num_workers "
               "prefetch_factor max_epochs max_steps n_of_samples n_of_samplings init_lr min_lr decay scheduler "
               "warmup_index warmup_steps "
               "keep_temp_index optimizer weight_decay max_norm seed save_frq save_steps eval_steps logging_steps "
               "last_index "
               "pretraining_model_path")
    for stage in STAGES:
        assert set(section.split()) <= set(config[stage]), stage


def test_S1_S2_O1_rates_of_the_tinyseek_stages(make):
    pre, sft = make().config["pre"], make().config["sft"]
    assert (pre["min_lr"], pre["decay"], sft["min_lr"], sft["decay"]) == (1e-7, 0.9995, 5e-7, 0.99995)
    assert pre["warmup_index"] == pre["keep_temp_index"] == -1


@pytest.mark.parametrize("key", ["warmup_index", "keep_temp_index"])
def test_S2_a_warm_up_by_chunks_is_exponential_whatever_lies_below(make, key):
    pre, sft = (make({"pre": {key: 2}}).config[stage] for stage in ("pre", "sft"))
    assert (pre[key], pre["scheduler"], pre["warmup_steps"]) == (2, "exponential", 0) and sft["scheduler"] == "cosine"
    assert make(stage="sft", overrides={key: "2"}).config["sft"]["scheduler"] == "exponential"
    assert make({"pre": {key: 2, "scheduler": "linear"}}).config["pre"]["scheduler"] == "linear"
    refused(make, {"pre": {key: 2, "warmup_steps": 5}}, key, "warmup_steps")


def test_stage_gives_one_flat_dict(make):
    manager = make({"n_layer": 2, "sft": {"batch_size": 3}}, stage="sft")
    flat = manager.stage()
    assert flat == manager.stage("sft")
    assert (flat["n_layer"], flat["batch_size"], flat["device"]) == (2, 3, "auto")
    assert set(flat) == {*MODEL_KEYS, *RUN_KEYS, *stage_keys("sft"), "own_shape"} and "rank" not in flat
    assert flat["own_shape"] == ["n_layer"]
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
    ({"n_layers_": 2}, "n_layers_", "n_layer"), ({"batchsize": 2}, "batchsize", "batch_size"),
    ({"pre": {"batch_sise": 2}}, "pre.batch_sise", "batch_size"),
    ({"presets": {"p": {"kep": 2}}}, "presets.p.kep", "keep"),
    ({"training": {"warmup_step": 1}}, "training.warmup_step", "warmup_steps"),
    ({"sfft": {"batch_size": 1}}, "sfft", "sft"), ({"zzzzqqq": 1}, "zzzzqqq", "--help"),
])
def test_unknown_keys_name_the_nearest(make, content, said, hint):
    refused(make, content, said, hint)


@pytest.mark.parametrize("key, value", [
    ("n_layer", 2.5), ("n_layer", True), ("n_layer", "two"), ("n_layer", None), ("n_layer", [2]), ("n_layer", 0),
    ("n_layer", -1),
    ("dropout", "x"), ("dropout", True), ("dropout", float("nan")), ("dropout", float("inf")), ("dropout", 1.0),
    ("dropout", -0.1),
    ("use_moe", 1), ("use_moe", "true"), ("use_moe", None), ("activation", "swish2"), ("activation", 3),
    ("activation", None),
    ("scheduler", "cosinus"), ("optimizer", "adamm"), ("json_data_path", 3), ("json_data_path", [1]),
    ("json_data_path", []),
    ("json_data_path", ""), ("out_dir", None), ("out_dir", "none"), ("out_dir", "a\0b"), ("init_lr", 0),
    ("init_lr", "1e-"), ("init_lr", "nan"),
    ("text_field", [None]), ("device", "gpu"), ("device", 0), ("tracker", "mlflow"), ("name", "a/b"), ("name", ".."),
    ("name", "a:b"),
    ("name", " a"), ("seed", -1), ("seed", 2 ** 64), ("vocab_size", 100), ("pad_idx", 1), ("decay", 1.5), ("decay", 0),
    ("pre", 3), ("pre", None),
    ("training", [1]), ("presets", [1]), ("presets", {"a": 1}), ("batch_size", {"a": 1}), ("mixed_precision", True),
    ("resume", 3),
])
def test_wrong_values_are_refused_by_name(make, key, value):
    refused(make, {key: value}, key)


@pytest.mark.parametrize("key, value, expected", [
    ("init_lr", "2e-4", 2e-4), ("init_lr", "1E-3", 1e-3), ("n_layer", "6", 6), ("n_layer", 3.0, 3),
    ("ro_theta", 500, 500.0), ("max_steps", "1e4", 10000),
    ("max_steps", "none", None), ("max_steps", None, None), ("d_q", "null", None), ("mixed_precision", False, "no"),
    ("compile", True, "yes"),
    ("compile", False, "no"), ("tracker", None, "none"), ("tracker", False, "none"), ("scheduler", "Cosine", "cosine"),
    ("resume", None, "none"),
    ("resume", False, "none"), ("resume", "AUTO", "auto"), ("experts", None, []),
    ("text_field", ["a", "b"], ["a", "b"]), ("memory_layers", 2, [2]),
    ("memory_layers", ["0", 3], [0, 3]), ("fsdp_sharding", "full_shard", "FULL_SHARD"),
])
def test_values_as_json_and_yaml_write_them(make, key, value, expected):
    stage = KEYS[key].stages[0]
    found = make({key: value}).stage(stage)[key]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("key, text, expected", [
    ("use_moe", "false", False), ("use_moe", "YES", True), ("save_best_model", "0", False), ("init_lr", "1e-4", 1e-4),
    ("max_steps", "none", None),
    ("max_steps", "null", None), ("text_field", "a,b", ["a", "b"]), ("text_field", '["a","b"]', ["a", "b"]),
    ("text_field", "a", "a"),
    ("text_field", ["a", "b"], ["a", "b"]), ("name", "none", None), ("sliding_window", "64", 64),
    ("seed", "1_000", 1000), ("tracker", "none", "none"),
])
def test_values_as_the_command_line_writes_them(make, key, text, expected):
    found = make(overrides={key: text}).stage("pre")[key]
    assert found == expected and type(found) is type(expected)


def test_memory_layers_and_lists_on_the_command_line(make):
    assert make(overrides={"memory_layers": "0,2"}).config["memory"]["memory_layers"] == [0, 2]
    assert make(overrides={"lora.lora_targets": "attention,router"}).config["lora"]["lora_targets"] == ["attention",
        "router"]
    refused(make, None, "--use_moe", overrides={"use_moe": "maybe"})
    refused(make, None, "--n_layer", overrides={"n_layer": "2.5"})


def test_no_value_of_any_kind_ends_in_another_exception():
    rng = random.Random(0)
    odd = [None, True, False, 0, 1, -1, 2.5, 1e400, -0.0, 10 ** 40, "", " ", "x", "1", "none", "null", "true", "1e-4",
           "1e999", "\0", "\ud800", "[", "[1",
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
    usual = {"logging_steps": "auto", "eval_steps": "auto", "save_steps": 500, "save_total_limit": 3}
    assert {key: defaults[key] for key in usual} == usual
    assert make({"eval_steps": " AUTO"}).config["pre"]["eval_steps"] == "auto"
    refused(make, {"save_steps": "auto"}, "save_steps")
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


@pytest.mark.parametrize("name", ["CON", "nul", "Aux", "prn", "com1", "LPT9", "aux.txt", "NUL.tar.gz", "con "])
def test_names_of_windows_devices(make, name):
    for key in ("name", "out_dir", "log_dir", "log_file", "cache_dir"):
        refused(make, {key: name if key == "name" else f"x/{name}/y"}, "Windows")
    make({"name": "x" + name.strip(), "out_dir": "console/null", "log_file": f"a{name}"})


# ---------------------------------------------------------------- laws between keys

@pytest.mark.parametrize("content, words", [
    ({"n_head": 7}, ["n_head", "d_model"]),
    ({"d_r": 15}, ["d_r"]),
    ({"keep": 9}, ["keep", "other_experts"]),
    ({"shared_experts": 0}, ["shared_experts"]),
    ({"n_kv_head": 2}, ["n_kv_head", "gqa"]),
    ({"attention": "gqa", "n_kv_head": 4}, ["n_kv_head", "n_head"]),
    ({"attention": "gqa", "d_model": 40, "n_head": 8}, ["偶数"]),
    ({"n_dense_layer": 5}, ["n_dense_layer"]),
    ({"min_lr": 1e-2, "scheduler": "exponential"}, ["min_lr", "init_lr"]),
    ({"pre": {"warmup_index": 2, "warmup_steps": 5}}, ["pre", "warmup_index", "warmup_steps"]),
    ({"pre": {"init_from": "a.pkl"}, "resume": "b.pkl"}, ["init_from", "resume"]),
    ({"pre": {"init_from": "a.pkl", "last_index": 3}}, ["init_from", "last_index"]),
    ({"pre": {"early_stopping": True, "eval_steps": None}}, ["early_stopping", "eval_steps"]),
    ({"pre": {"early_stopping": True, "eval_share": 0}}, ["early_stopping", "eval_share"]),
    ({"qk_norm": True}, ["qk_norm", "gqa"]), ({"counted": 3}, ["counted", "use_fc2"]),
    ({"counted": 1, "use_fc2": False}, ["counted"]),
    ({"sft": {"keep_temp_index": 2, "warmup_steps": 5}}, ["keep_temp_index", "warmup_steps"]),
    ({"pre": {"eval_share": 0.6}}, ["eval_share"]),
    ({"position": "learned", "max_position": 64}, ["max_position", "max_len"]),
    ({"lora": {"rank": 0}}, ["rank"]),
    ({"memory": {"memory_tokens": 10}}, ["memory_chapters"]),
    ({"memory": {"memory_topk": 9}}, ["memory_topk"]),
])
def test_laws_between_keys(make, content, words):
    refused(make, content, *words)


@pytest.mark.parametrize("content", [
    {"use_moe": False, "keep": 99}, {"use_moe": False, "shared_experts": 0},
    {"attention": "gqa", "n_kv_head": 1, "d_r": 3},
    {"keep": 8}, {"scheduler": "cosine", "min_lr": 1}, {"n_dense_layer": 4},
    {"attention": "gqa", "position": "alibi", "d_model": 40, "n_head": 8},
    {"device": "cuda:1"}, {"name": "实验 1"}, {"memory": {"rank": 4}},
])
def test_laws_leave_alone_what_works(make, content):
    make(content)


def test_learned_positions_reach_as_far_as_the_longest_row(make):
    assert make({"position": "learned", "sft": {"max_len": 700}}).config["max_position"] == 700
    assert make().config["max_position"] is None


def test_a_run_with_a_name_starts_from_the_base_of_that_name(make, tmp_path):
    said = {"out_dir": str(tmp_path / "out")}
    base = lambda stage="sft", **more: make({**said, **more}).config[stage]["pretraining_model_path"]       # noqa: E731
    common, own = str(tmp_path / "out/TinySeek_Pre_final.pkl"), tmp_path / "out/my/TinySeek_Pre_final.pkl"
    assert base(name="my") == common
    own.parent.mkdir(parents=True)
    own.write_bytes(b"")
    assert base() == common and base(name="other") == common and base(name="my") == str(own)
    assert base(name="my", sft={"pretraining_model_path": str(tmp_path / "b.pkl")}) == str(tmp_path / "b.pkl")
    (own.parent / "backup_20260101_000000").mkdir()
    # a base being trained anew is no reason for another one
    own.rename(own.parent / "backup_20260101_000000" / own.name)
    assert base(name="my") == str(own)
    assert base("pre", name="my") is None and base("gate", name="my") is None

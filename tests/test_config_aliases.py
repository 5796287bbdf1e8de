"""Other ecosystems' names: each maps to a key of ours, or is refused by name."""
import ast
import json
import re
from pathlib import Path

import pytest

from tools.config.aliases import CONVERTED, FOREIGN_NAMES, REFUSED, RENAMED, SWITCHES, key_behind
from tools.config.keys import KEYS
from tools.config_manager import ConfigManager
from tools.errors import UserError

SOURCES = Path(__file__).resolve().parents[2] / "shared" / "sources"

# What a memory-transformer's `training:` block says, and where each of its keys must arrive (stage memory).
TRAINING_BLOCK = {
    "memory_lr": ("2e-4", "memory_lr", 2e-4), "lora_lr": ("1e-4", "lora_lr", 1e-4),
    "base_model_lr": ("1e-5", "base_model_lr", 1e-5),
    "training_mode": ("instruction_finetuning", "training_mode", "instruction_finetuning"),
    "dataset_name": ("Some/chat_200k", "json_data_path", "hf:Some/chat_200k"),
    "dataset_subset": (None, "hf_subset", None),
    "dataset_split": ("train_sft", "hf_split", "train_sft"), "text_field": ("messages", "text_field", "messages"),
    "max_length": (4096, "max_len", 4096), "distributed_strategy": ("fsdp", "distributed", "fsdp"),
    "num_gpus": (1, None, None),
    "fsdp_sharding_strategy": ("SHARD_GRAD_OP", "fsdp_sharding", "SHARD_GRAD_OP"), "batch_size": (4, "batch_size", 4),
    "gradient_accumulation_steps": (4, "accumulation_steps", 4), "max_steps": (10000, "max_steps", 10000),
    "warmup_steps": (100, "warmup_steps", 100),
    "optimizer": ("adamw", "optimizer", "adamw"), "weight_decay": (0.01, "weight_decay", 0.01),
    "max_grad_norm": (0.5, "max_norm", 0.5),
    "scheduler": ("cosine", "scheduler", "cosine"), "mixed_precision": ("bf16", "mixed_precision", "bf16"),
    "save_precision": ("fp16", "save_precision", "fp16"),
    "gradient_checkpointing": (True, "gradient_checkpointing", True), "save_steps": (400, "save_steps", 400),
    "eval_steps": (300, "eval_steps", 300),
    "save_total_limit": (5, "save_total_limit", 5), "save_best_model": (False, "save_best_model", False),
    "early_stopping": (True, "early_stopping", True),
    "early_stopping_patience": (4, "early_stopping_patience", 4),
    "early_stopping_threshold": (0.1, "early_stopping_threshold", 0.1),
    "logging_steps": (20, "logging_steps", 20), "log_to_wandb": (True, "tracker", "wandb"),
    "output_dir": ("./outputs", "out_dir", "outputs"),
}
MINIMIND_CALL = {
    "hidden_size": (512, "d_model", 512), "num_attention_heads": (16, "n_head", 16),
    "num_hidden_layers": (3, "n_layer", 3),
    "use_alibi": (True, "position", "alibi"), "use_geglu": (True, "activation", "geglu"),
    "sliding_window": (1024, "sliding_window", 1024),
    "use_moe": (True, "use_moe", True), "n_routed_experts": (12, "other_experts", 12),
    "num_experts_per_tok": (3, "keep", 3),
    "gradient_checkpointing": (True, "gradient_checkpointing", True),
}


@pytest.fixture
def load(tmp_path):
    def load(content, stage="memory", **keywords):
        path = tmp_path / "c.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return ConfigManager(path, stage=stage, **keywords).stage()
    load.folder = tmp_path
    return load


def refused(load, content, *words, **keywords):
    with pytest.raises(UserError) as caught:
        load(content, **keywords)
    assert caught.value.code == 2
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("wrap", [lambda block: {"training": block}, lambda block: block], ids=["block", "flat"])
def test_T11_the_training_block_loads_unchanged(load, wrap):
    stage = load(wrap({name: value for name, (value, *_) in TRAINING_BLOCK.items()}))
    for name, (_, key, expected) in TRAINING_BLOCK.items():
        if key == "out_dir":
            expected = str(load.folder / expected)
        assert key is None or stage[key] == expected, name


def test_T11_A4_the_minimind_call_loads_unchanged(load):
    stage = load({name: value for name, (value, *_) in MINIMIND_CALL.items()})
    for name, (_, key, expected) in MINIMIND_CALL.items():
        assert stage[key] == expected, name


def test_T11_each_key_alone_as_json_and_on_the_command_line(load):
    for name, (value, key, expected) in {**TRAINING_BLOCK, **MINIMIND_CALL}.items():
        if key in (None, "json_data_path", "out_dir", "n_head", "d_model") or value is None:
            continue
        assert load({name: value})[key] == expected, name
        assert load({}, overrides={name: str(value)})[key] == expected, name


def test_T11_the_source_documents_themselves(load, tmp_path):
    """The very blocks, when the documents are at hand."""
    if not SOURCES.is_dir():
        pytest.skip("../shared/sources is not here")
    yaml = pytest.importorskip("yaml")
    text = next(SOURCES.glob("C_*.md")).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "memory_lr" in block]
    path = tmp_path / "c.yaml"
    path.write_text(blocks[0], encoding="utf-8")
    config = ConfigManager(path, stage="memory").config
    said = yaml.safe_load(blocks[0])["training"]
    assert set(said) == set(TRAINING_BLOCK)
    assert config["memory"]["memory_lr"] == float(
        said["memory_lr"]) and config["memory"]["max_len"] == said["max_length"]
    text = next(SOURCES.glob("M_*.md")).read_text(encoding="utf-8")
    call = re.search(r"MiniMindConfig\(.*?\n\)", text, re.S).group()
    said = {one.arg: one.value.value for one in ast.parse(call).body[0].value.keywords}
    assert set(said) == set(MINIMIND_CALL)
    stage = load(said)
    assert all(stage[MINIMIND_CALL[name][1]] == value for name, value in said.items() if not name.startswith("use_"))


def test_T11_the_course_and_other_names(load):
    stage = load(
        {
            "training": {"seq_len": 128, "epochs": 10, "learning_rate": 3e-4, "grad_clip": 1, "eval_interval": 50,
                         "save_interval": 500, "print_frq": 7}})
    names = ("max_len", "max_epochs", "init_lr", "max_norm", "eval_steps", "save_steps", "logging_steps")
    assert [stage[name] for name in names] == [128, 10, 3e-4, 1.0, 50, 500, 7]
    assert load({"dtype": "bfloat16"})["mixed_precision"] == "bf16"
    assert load({"hidden_act": "silu"})["activation"] == "swiglu"
    stage = load({"num_samples": 64})
    assert (stage["n_of_samples"], stage["n_of_samplings"]) == (64, 1)
    assert load({"num_samples": None})["n_of_samples"] is None


def test_the_table_points_at_keys_that_exist_and_never_hides_one():
    assert set(RENAMED.values()) <= set(KEYS)
    assert not set(FOREIGN_NAMES) & set(KEYS)
    assert len(FOREIGN_NAMES) == len(set(FOREIGN_NAMES))
    assert all(key in KEYS and on in KEYS[key].choices and off in KEYS[key].choices
               for key, on, off in SWITCHES.values())
    contract = (
        "hidden_size num_hidden_layers num_attention_heads n_routed_experts n_shared_experts num_experts_per_tok "
        "use_alibi use_geglu "
                "gradient_accumulation_steps max_grad_norm grad_clip max_length seq_len learning_rate output_dir "
                "save_interval eval_interval "
                "resume_from_checkpoint log_to_wandb distributed_strategy fsdp_sharding_strategy dataset_name "
                "dataset_split print_frq")
    assert all(key_behind(name) for name in contract.split())
    assert key_behind("nonsense") is None and key_behind("n_layer") == "n_layer" and key_behind("shuffle") is None


# ---------------------------------------------------------------- two names

@pytest.mark.parametrize("content, names", [
    ({"max_norm": 1, "max_grad_norm": 2}, ["max_norm", "max_grad_norm"]),
    ({"max_grad_norm": 1, "grad_clip": 2}, ["max_grad_norm", "grad_clip"]),
    ({"d_model": 256, "hidden_size": 512}, ["d_model", "hidden_size"]),
    ({"max_norm": 1, "training": {"grad_clip": 2}}, ["max_norm", "training.grad_clip"]),
    ({"use_alibi": True, "position": "rope"}, ["use_alibi", "position"]),
    ({"use_alibi": False, "position": "alibi"}, ["use_alibi", "position"]),
    ({"log_to_wandb": True, "use_swanlab": True}, ["log_to_wandb", "use_swanlab"]),
    ({"fp16": True, "bf16": True}, ["fp16", "bf16"]),
    ({"memory": {"lr": 1e-3, "init_lr": 1e-4}}, ["memory.lr", "memory.init_lr"]),
    ({"presets": {"p": {"lr": 1e-3, "init_lr": 1e-4}}}, ["presets.p.lr", "presets.p.init_lr"]),
])
def test_two_names_with_different_values_are_an_error(load, content, names):
    refused(load, content, *names)


@pytest.mark.parametrize("content, key, expected", [
    ({"max_norm": 2, "max_grad_norm": 2.0, "grad_clip": "2"}, "max_norm", 2.0),
    ({"use_alibi": True, "position": "alibi"}, "position", "alibi"),
    ({"use_alibi": False, "position": "learned"}, "position", "learned"),
    ({"fp16": True, "bf16": False}, "mixed_precision", "fp16"),
    ({"fp16": False, "bf16": False}, "mixed_precision", "auto"),
    ({"batch_size": 2, "memory": {"batch_size": 3}}, "batch_size", 3),
])
def test_two_names_that_agree_are_fine(load, content, key, expected):
    assert load(content)[key] == expected


def test_a_higher_layer_wins_under_any_name(load):
    assert load({"max_norm": 1}, overrides={"grad_clip": "3"})["max_norm"] == 3.0
    assert load({"learning_rate": 1e-3, "presets": {"p": {"lr": 2e-3}}}, preset="p")["init_lr"] == 2e-3


def test_a_switch_that_is_off_undoes_only_what_it_names(load):
    assert load({"position": "alibi"}, overrides={"use_alibi": "false"})["position"] == "rope"
    assert load({"position": "learned"}, overrides={"use_alibi": "false"})["position"] == "learned"
    assert load({"tracker": "swanlab"},
                overrides={"log_to_wandb": "false", "use_swanlab": "false"})["tracker"] == "none"
    refused(load, {"use_alibi": "perhaps"}, "use_alibi")


# ---------------------------------------------------------------- conversions and refusals

def test_dataset_names_are_local_paths_or_names_on_the_hub(load):
    (load.folder / "here").mkdir()
    assert load({"dataset_name": "here"})["json_data_path"] == str(load.folder / "here")
    assert load({"dataset_name": "rows.jsonl"})["json_data_path"] == str(load.folder / "rows.jsonl")
    assert load({"dataset_name": "a/b"})["json_data_path"] == "hf:a/b"
    assert load({"dataset_name": "hf:a/b"})["json_data_path"] == "hf:a/b"
    refused(load, {"dataset_name": 3}, "dataset_name")


def test_resume_from_checkpoint(load):
    assert load({"resume_from_checkpoint": True})["resume"] == "auto"
    assert load({"resume_from_checkpoint": False})["resume"] == "none"
    assert load({"resume_from_checkpoint": None})["resume"] == "auto"
    assert load({"resume_from_checkpoint": "o/x.pkl"})["resume"] == str(load.folder / "o" / "x.pkl")


def test_the_number_of_processes_is_the_launchers_business(load, monkeypatch):
    refused(load, {"training": {"num_gpus": 4}}, "training.num_gpus", "torchrun")
    monkeypatch.setenv("WORLD_SIZE", "4")
    load({"num_gpus": 4})


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_with_the_reason(load, name):
    refused(load, {name: 1}, name, "没有意义", REFUSED[name])
    refused(load, {}, f"--{name}", overrides={name: "1"})


@pytest.mark.parametrize("name", [*RENAMED, *SWITCHES, *CONVERTED])
def test_no_foreign_value_ends_in_another_exception(load, name):
    for value in (None, True, 0, -1, "x", "", [], ["a", "b"], [[1]], {}, {"a": [1]}, 1e300):
        try:
            load({name: value})
        except UserError as error:
            assert error.code == 2

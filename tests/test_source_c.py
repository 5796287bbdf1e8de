"""A memory and LoRA on a base of Qwen2.5's shape, by a configuration as the memory transformer's authors write it."""
import json
import shutil
from pathlib import Path

import pytest
import torch

import toy
from bench.lively import lively_payload
from model.build import build
from tools.checkpoint import load_chain, read_checkpoint
from tools.config_manager import ConfigManager
from tools.errors import UserError
from tools.saving.archive import write_torch
from train_agent.trainers.loop import Loop

QWEN25 = {"attention": "gqa", "n_kv_head": 2, "bias": "qkv", "use_moe": False, "use_fc2": False, "tie_embedding": True,
          "ro_theta": 1e6, "n_layer": 2}
YAML = """
model:
  base_model_name: BASE
  memory_tokens: 12
  memory_chapters: 4
training:
  memory_lr: 2e-4
  lora_lr: 1e-4
  base_model_lr: 1e-5
  training_mode: instruction_finetuning
  dataset_name: chat.jsonl
  dataset_subset: null
  dataset_split: train_sft
  text_field: messages
  max_length: 40
  distributed_strategy: ddp
  num_gpus: 1
  fsdp_sharding_strategy: FULL_SHARD
  batch_size: 2
  gradient_accumulation_steps: 2
  max_steps: 3
  warmup_steps: 1
  optimizer: adamw
  weight_decay: 0.01
  max_grad_norm: 1.0
  scheduler: cosine
  mixed_precision: "no"
  save_precision: fp32
  gradient_checkpointing: true
  save_steps: 500
  eval_steps: 500
  save_total_limit: 3
  save_best_model: true
  early_stopping: false
  early_stopping_patience: 3
  early_stopping_threshold: 0.0
  logging_steps: 10
  log_to_wandb: false
  output_dir: outputs
device: cpu
log_dir: logs
log_file: log.txt
replay_data_path: chat.jsonl
"""


def options_of(folder, vocab, base, **shape):
    """The stage's options of that file, beside a base of this shape."""
    pytest.importorskip("yaml")
    if shape:
        write_torch(folder / base, lively_payload(vocab, **shape)[0])
    rows = [{"messages": row["conversations"]} for row in toy.dialogue_rows(12)]
    toy.write_rows(folder / "chat.jsonl", rows)
    (folder / "c.yaml").write_text(YAML.replace("BASE", base), encoding="utf-8")
    return ConfigManager(folder / "c.yaml", stage="memory").stage("memory")


def test_B4_memory_and_lora_train_on_a_base_of_qwens_shape(ram_path, vocab):
    """The three rates reach their parts, each weight once; the trained adapter is found with its base again."""
    options = options_of(ram_path, vocab, "base.pkl", **QWEN25)
    assert options["rank"] == 8 and options["text_field"] == "messages" and options["max_len"] == 40
    stage = toy.build_stage(options, "memory")
    wanted = {"memory": 2e-4, "lora": 1e-4, "base": 1e-5}
    parts = {name: "lora" if ".lora." in name else "memory" if ".memories." in name else "base"
             for name, *_ in stage.trainable()}
    assert set(parts.values()) == set(wanted) and set(parts) == {name for name, _ in stage.model.named_parameters()}
    assert all(rate == wanted[parts[name]] for name, _, rate in stage.trainable())
    before = {name: p.detach().clone() for name, p, _ in stage.trainable()}
    loop = Loop(stage)
    metrics = loop.run()
    held = [p for optimizer in loop.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(before)
    moved = {part: any(not torch.equal(p, before[name]) for name, p, _ in stage.trainable() if parts[name] == part)
             for part in wanted}
    assert all(moved.values()) and metrics["loss"] > 0
    model = build(load_chain(ram_path / "outputs/TinySeek_Memory_final.pkl")).eval()
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits_1, stage.model.eval()(ids).logits_1, atol=1e-5)


def test_a_folder_in_the_shape_of_transformers_is_a_base_as_it_is(tmp_path, vocab, capsys):
    """Brought once; a folder that cannot be a base says why."""
    pytest.importorskip("safetensors")
    from chat_agent import export
    shape = {**QWEN25, "bias": "none", "qk_norm": True}
    write_torch(tmp_path / "own.pkl", lively_payload(vocab, **shape)[0])
    export.main(["--model", str(tmp_path / "own.pkl"), "--to", "hf", "--output", str(tmp_path / "qwen")])
    options = options_of(tmp_path, vocab, "qwen")
    stages = [toy.build_stage(options, "memory") for _ in range(2)]
    assert capsys.readouterr().err.count("已带成") == 1
    assert stages[0].about["base"]["hash"] == stages[1].about["base"]["hash"]
    assert stages[0].about["base"]["path"].endswith(".pkl") and len(list(tmp_path.glob("outputs/bases/*.pkl"))) == 1
    (tmp_path / "qwen/config.json").write_text(json.dumps({"model_type": "martian"}), encoding="utf-8")
    with pytest.raises(UserError, match="martian") as caught:
        toy.build_stage(options, "memory")
    assert caught.value.code == 4
    shutil.rmtree(tmp_path / "qwen")
    with pytest.raises(UserError, match="下载到本机"):
        ConfigManager(tmp_path / "c.yaml", stage="memory")


def test_B4_a_yaml_that_names_a_downloaded_folder_trains_and_the_result_answers(tmp_path, vocab, capsys):
    """From the folder as it was downloaded to a reply, by commands alone; spaces and Chinese in its path."""
    pytest.importorskip("transformers")
    import toy_bases
    from chat_agent import chat
    from train_agent import memory_train
    folder = tmp_path / "下载 的/Qwen2.5-0.0B-Instruct"
    toy_bases.base_folder(folder, "qwen2", dtype=torch.bfloat16)
    options_of(tmp_path, vocab, str(folder))
    memory_train.main(["--config", str(tmp_path / "c.yaml"), "--eval_share", "0", "--threads", "1"])
    trained = tmp_path / "outputs/TinySeek_Memory_final.pkl"
    payload = read_checkpoint(trained)
    assert payload["step"] == 3 and payload["adapter"]["train_base"] and payload["vocab"]["token_kind"] == "foreign"
    capsys.readouterr()
    chat.main(["--model", str(trained), "--prompt", "你好", "--max_new_tokens", "4", "--device", "cpu"])
    assert "错误" not in capsys.readouterr().err


def test_lora_beside_a_memory_is_wanted_by_whoever_gives_it_a_rate():
    def rank(**keys):
        return ConfigManager(overrides=keys, stage="memory").stage("memory")["rank"]
    assert rank() == 0 and rank(lora_lr=1e-4) == 8 and rank(lora_lr=1e-4, rank=0) == 0 and rank(rank=3) == 3
    assert ConfigManager({"memory": {"lora_lr": 1e-4}}).config["memory"]["rank"] == 8
    assert Path(ConfigManager().path).name == "model_config.json"

"""The built-in specialists of `run.py --with adapters`: three LoRA, a prefix and a memory on one base, and a gate over the LoRA.

Each has its own folder under out/. They learn small built-in sets: another name, another table layout, rhymed greetings.
"""

from pathlib import Path

from tools.demo_adapters import write_adapters
from train_agent.trainers.gated_training import gate_train
from train_agent.trainers.lora_tuning import lora_train
from train_agent.trainers.memory_tuning import memory_train
from train_agent.trainers.prefix_tuning import prefix_train

LORA = ("identity", "shopping", "greeting")
TITLES = {"identity": "LoRA：换个名字", "shopping": "LoRA：换种清单", "greeting": "LoRA：押韵的问候"}


def train_specialists(manager, progress, quick=False):
    """Train them all, each once. -> {"adapters": {name: metrics}, "gate": report of the gate} for report.json."""
    lora = manager.stage("lora")
    paths = write_adapters(Path(manager.stage("sft")["json_data_path"]).parent)
    done = {}
    for name in LORA:
        done[f"lora_{name}"] = progress.once(f"lora_{name}", TITLES[name], lambda: run(lora_train, lora, paths, name, f"lora_{name}", quick))
    done["prefix"] = progress.once("prefix", "前缀：押韵的问候", lambda: run(prefix_train, manager.stage("prefix"), paths, "greeting", "prefix", quick))
    done["memory"] = progress.once("memory", "记忆：换种清单", lambda: run(memory_train, manager.stage("memory"), paths, "shopping", "memory", quick))
    experts = [str(Path(lora["out_dir"]) / f"lora_{name}" / "TinySeek_Lora_final.pkl") for name in LORA]
    gate = progress.once("gate", "选择门", lambda: run(gate_train, {**manager.stage("gate"), "experts": experts}, paths, "gate", "gate", quick))
    return {"adapters": done, "gate": gate["gate"]}


def run(train, options, paths, data, folder, quick):
    """One specialist in its own folder; the held-out rows of its set are its evaluation."""
    return train(options, json_data_path=str(paths[data]), eval_data_path=str(paths[f"{data}_eval"]), name=folder,
                 max_steps=4 if quick else options["max_steps"])

"""The built-in specialists of `run.py --with adapters`: three LoRA, a prefix and a memory on one base, and a gate over
the LoRA.

Each has its own folder under out/. They learn small built-in sets: another name, another table layout, rhymed
greetings.
"""

from pathlib import Path

from tools.checkpoint import final_name
from tools.config.stages import TABLE
from tools.demo.adapters import write_adapters
from train_agent.trainers.gated_training import gate_train
from train_agent.trainers.lora_tuning import lora_train
from train_agent.trainers.memory_tuning import memory_train
from train_agent.trainers.prefix_tuning import prefix_train

TRAIN = {"lora": lora_train, "prefix": prefix_train, "memory": memory_train, "gate": gate_train}
# folder under out/: (stage, built-in set, title)
SPECIALISTS = {"lora_identity": ("lora", "identity", "LoRA：换个名字"), "lora_shopping": ("lora", "shopping", "LoRA：换种清单"),
               "lora_greeting": ("lora", "greeting", "LoRA：押韵的问候"), "prefix": ("prefix", "greeting", "前缀：押韵的问候"),
               "memory": ("memory", "shopping", "记忆：换种清单")}
GATE = ("gate", "选择门")


def titles():
    """{name: title} of what `train_specialists` does, in order."""
    return {**{folder: title for folder, (_, _, title) in SPECIALISTS.items()}, GATE[0]: GATE[1]}


def train_specialists(manager, progress, score, base, quick=False):
    """Train them all, each once, on the model at `base`. -> {"adapters": {name: metrics}, "gate": report of the gate}
    for report.json.

    score(path of a checkpoint, path of questions) -> share of exact answers, for every set's held-out questions.
    """
    paths = write_adapters(Path(manager.stage("sft")["json_data_path"]).parent)
    options = {stage: {**manager.stage(stage), **({"pretraining_model_path": str(base)} if stage != "gate" else {})}
               for stage in TRAIN}
    done = {}
    for folder, (stage, data, title) in SPECIALISTS.items():
        def work(folder=folder, stage=stage, data=data):
            metrics = run(stage, options[stage], paths, data, folder, quick)
            return {**metrics, "exact": score(final(options[stage], folder, stage), paths[f"{data}_eval"])}
        done[folder] = progress.once(folder, title, work, made=final(options[stage], folder, stage), needs=[base])
    print_specialists(done)
    experts = [str(final(options["lora"], folder, "lora")) for folder, (stage, _, _) in SPECIALISTS.items()
               if stage == "lora"]
    gate = progress.once(*GATE,
                         lambda: run("gate", {**options["gate"], "experts": experts}, paths, "gate", "gate", quick),
                         made=final(options["gate"], "gate", "gate"), needs=experts)
    return {"adapters": done, "gate": gate["gate"]}


def final(options, folder, stage):
    return Path(options["out_dir"]) / folder / final_name(TABLE[stage].label)


def run(stage, options, paths, data, folder, quick):
    """One specialist in its own folder, its curves beside it; the held-out rows of its set are its evaluation."""
    return TRAIN[stage](options, json_data_path=str(paths[data]), eval_data_path=str(paths[f"{data}_eval"]),
                        name=folder,
                        max_steps=4 if quick else options["max_steps"])


def print_specialists(done):
    """One line each: held-out questions answered exactly, and what the base forgot meanwhile."""
    for folder, metrics in done.items():
        first, last = metrics.get("general_first"), metrics.get("general_loss")
        forgot = f"，通用损失 {first:.3f} → {last:.3f}" if first is not None else ""
        print(f"　{folder}：没见过的问法答对 {metrics['exact']:.1%}{forgot}")

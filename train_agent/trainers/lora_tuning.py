"""LoRA: a low-rank change of some projections is learned, the model itself stays as it is."""

import sys
from functools import partial

from train_agent.trainers import parallel
from train_agent.trainers.build_stage import adapter_stage
from train_agent.trainers.running.forget_penalty import general_moments, keeping_loss
from train_agent.trainers.data.teacher import learn_from_teacher
from train_agent.trainers.data.replay import general_to_learn_from
from train_agent.trainers.run_stage import start


def describe(options, vocab=None):
    """The keywords of model.lora.apply_lora for these options, as they are kept in the file."""
    targets, rank = options["lora_targets"], options["rank"]
    return {"type": "lora", "rank": rank, "alpha": float(options["lora_alpha"] or rank),
            "targets": [targets] if isinstance(targets, str) else list(targets),
            "scale": options["scale"], "dropout": options["lora_dropout"]}


def build_stage(options):
    stage = learn_from_teacher(adapter_stage("lora", options, describe))
    general = general_to_learn_from(stage) if options["forget_penalty"] else None
    if general is not None:                            # not the rows that the guard scores
        stage.loss = partial(keeping_loss, general_moments(stage.model, general), options["forget_penalty"])
    elif options["forget_penalty"] and parallel.is_main():
        print("这次不用 forget_penalty：没有训练数据之外的通用数据（replay_data_path）。", file=sys.stderr)
    return stage


def lora_train(config, **parameters):
    """Train on the options of the stage `lora`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters})

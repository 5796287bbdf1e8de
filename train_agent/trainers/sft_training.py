"""Supervised fine-tuning: the model reads whole dialogues and learns the replies alone."""

from train_agent.trainers.build_stage import full_model_stage
from train_agent.trainers.run_stage import start

WAYS_ON = "请先运行 python train_agent/pre_train.py（或 python run.py）；若要不经预训练直接开始，加 --pretraining_model_path none。"


def build_stage(options):
    return full_model_stage("sft", options, WAYS_ON)


def sft_train(config, **parameters):
    """Train on the options of the stage `sft`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters})

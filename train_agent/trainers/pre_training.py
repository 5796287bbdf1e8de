"""Pre-training: every token of plain text is a target."""

from train_agent.trainers.prepare import full_model_stage
from train_agent.trainers.start import start

WAYS_ON = "请检查 init_from 或 pretraining_model_path，或去掉它从零开始。"


def build_stage(options):
    return full_model_stage("pre", "Pre", options, WAYS_ON)


def pre_train(config, **parameters):
    """Train on the options of the stage `pre`, `parameters` on top. Returns the last metrics; see Loop for exit codes."""
    return start(build_stage, {**config, **parameters})

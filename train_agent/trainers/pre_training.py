"""Pre-training: every token of plain text is a target."""

from train_agent.trainers.data.pair_start import passes_for, start_from_pairs
from train_agent.trainers.build_stage import full_model_stage
from train_agent.trainers.run_stage import start

WAYS_ON = "请检查 init_from 或 pretraining_model_path，或去掉它从零开始。"


def build_stage(options):
    stage = full_model_stage("pre", options, WAYS_ON)
    passes = passes_for(stage.model, options)
    if passes:
        stage.begin = lambda device: start_from_pairs(stage.model, stage.train, passes, options["seed"], device)
    stage.rates = two_rates(options)
    return stage


def two_rates(options):
    """parameter name -> its learning rate, where word vectors and heads have one of their own; None where they have
    not."""
    own = options["embedding_lr"]
    return own and (lambda name: own if name.startswith(("embed", "fc")) else options["init_lr"])


def pre_train(config, **parameters):
    """Train on the options of the stage `pre`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters})

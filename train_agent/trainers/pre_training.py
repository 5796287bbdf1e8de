"""Pre-training: every token of plain text is a target."""

from train_agent.trainers.data import copy_start
from train_agent.trainers.data.pair_start import passes_for, start_from_pairs
from train_agent.trainers.build_stage import full_model_stage
from train_agent.trainers.run_stage import start

WAYS_ON = "请检查 init_from 或 pretraining_model_path，或去掉它从零开始。"


def build_stage(options):
    stage = full_model_stage("pre", options, WAYS_ON)
    passes = passes_for(stage.model, options)
    copies = copy_start.wanted(stage.model, options, passes)
    if passes:
        stage.begin = lambda device: start_from_pairs(stage.model, stage.train, passes, copies, options["seed"], device)
    stage.rates = two_rates(stage.options, bool(passes))
    return stage


def two_rates(options, from_pairs):
    """parameter name -> its learning rate. Word vectors and heads that start from pair counts are nearly where they
    belong: unless the user names their rate, it is a third of the others'."""
    def rate(name):
        if not name.startswith(("embed", "fc")):
            return options["init_lr"]
        started = from_pairs and options["pair_start"] != 0       # 0: a run begun before there was such a start
        return options["embedding_lr"] or options["init_lr"] / (3 if started else 1)
    return rate


def pre_train(config, **parameters):
    """Train on the options of the stage `pre`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters})

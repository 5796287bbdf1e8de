"""LoRA: a low-rank change of some projections is learned, the model itself stays as it is."""

from train_agent.trainers.adapting import adapter_stage
from train_agent.trainers.start import start


def describe(options, vocab=None):
    """The keywords of model.lora.apply_lora for these options, as they are kept in the file."""
    targets, rank = options["lora_targets"], options["rank"]
    return {"type": "lora", "rank": rank, "alpha": float(options["lora_alpha"] or rank),
            "targets": [targets] if isinstance(targets, str) else list(targets),
            "scale": options["scale"], "dropout": options["lora_dropout"]}


def build_stage(options):
    return adapter_stage("lora", "Lora", options, describe)


def lora_train(config, **parameters):
    """Train on the options of the stage `lora`, `parameters` on top. Returns the last metrics; see Loop for exit codes."""
    return start(build_stage, {**config, **parameters})

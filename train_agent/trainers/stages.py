"""Which function builds a stage. What stages there are, and where, says the table tools/config/stages.py."""

from importlib import import_module

from tools.config.stages import TABLE


def builder(name):
    """The build_stage(options) of the stage `name` (pre, sft ...)."""
    return import_module(f"train_agent.trainers.{TABLE[name].module}").build_stage

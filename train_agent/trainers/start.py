"""What a stage script does: train, or what --plan, --dry_run, --find_lr ... ask for instead."""

from importlib import import_module

from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.opening import OpenedLoop, check_up

INSTEAD = {"dry_run": ("preflight", "preflight"), "find_lr": ("lr_finder", "find_lr"), "find_batch": ("batch_finder", "find_batch"),
           "overfit_one_batch": ("checks", "overfit_one_batch"), "check_gradients": ("checks", "check_gradients")}


def start(build_stage, options):
    """Train the stage that build_stage(options) makes -> its last metrics; or do what a key of INSTEAD, or `plan`, asks for."""
    wanted = asked(options)
    if wanted == "plan":
        return import_module("train_agent.trainers.plan").show_plan(options)
    checked = check_up(options) if wanted in (None, "dry_run") else None
    stage = build_stage(options)
    if not wanted:
        return OpenedLoop(stage, checked).run()
    home, name = INSTEAD[wanted]
    with parallel.watched():
        return getattr(import_module(f"train_agent.trainers.{home}"), name)(stage)


def asked(options):
    """What is asked for instead of training, None = nothing. UserError 2 where it is more than one thing."""
    names = [name for name in ("plan", *INSTEAD) if options[name]]
    if len(names) > 1:
        raise UserError(f"{'、'.join('--' + name for name in names)} 一次只能用一个。")
    return names[0] if names else None

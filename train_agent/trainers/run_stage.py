"""What a stage script does: train, or what --dry_run, --find_lr ... ask for instead."""

import sys
from importlib import import_module
from pathlib import Path

from tools.errors import UserError
from tools.plot import draw_plt
from tools.process.page import page_beside
from train_agent.trainers import parallel
from train_agent.trainers.running.diary import OpenedLoop, check_up
from train_agent.trainers.running.minutes import timed_stage

INSTEAD = {"dry_run": ("preflight", "preflight"), "find_lr": ("lr_finder", "find_lr"),
           "find_batch": ("trying.find_batch", "find_batch"),
           "overfit_one_batch": ("trying.checks", "overfit_one_batch"),
           "check_gradients": ("trying.checks", "check_gradients")}


def start(build_stage, options, after=None):
    """Train the stage that build_stage(options) makes -> its last metrics; or do what a key of INSTEAD asks for.

    after(stage, metrics) -> metrics: what the main process adds when all is trained.
    """
    wanted = asked(options)
    checked = check_up(options) if wanted in (None, "dry_run") else None
    stage = build_stage(options) if wanted else timed_stage(build_stage, options)
    if not wanted:
        ahead = not options["minutes"]                          # else its speed has just been measured
        with page_beside(options, Path(options["out_dir"], options["name"] or "")):
            metrics = OpenedLoop(stage, checked, ahead, closing=lambda: draw_curves(stage)).run()
        return after(stage, metrics) if after and parallel.is_main() else metrics
    home, name = INSTEAD[wanted]
    with parallel.watched():
        return getattr(import_module(f"train_agent.trainers.{home}"), name)(stage)


def draw_curves(stage):
    """The run's curves as pictures: in log_dir, or in the folder of a run that has a name."""
    options = stage.options
    if not parallel.is_main() or not options["logging_steps"]:
        return
    folder = Path(options["out_dir"], options["name"]) if options["name"] else options["log_dir"]
    try:
        *_, overview = draw_plt(stage.name, options["log_file"], folder)
        print(f"曲线：{overview}", file=sys.stderr)
    except UserError as error:                                  # no line was ever logged
        print(f"没有画曲线：{error}", file=sys.stderr)


def asked(options):
    """What is asked for instead of training, None = nothing. UserError 2 where it is more than one thing."""
    names = [name for name in INSTEAD if options[name]]
    if len(names) > 1:
        raise UserError(f"{'、'.join('--' + name for name in names)} 一次只能用一个。")
    return names[0] if names else None

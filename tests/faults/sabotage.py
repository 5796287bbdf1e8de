"""What a child process of zygote.py may be told to do wrong (control arms), or to itself at a given place (signals)."""
import os
import signal

import torch

from train_agent.trainers import loop as loop_file
from train_agent.trainers.running import resume
from train_agent.trainers.dataset import Position


# ---- control arms: a guard is taken away ----

def forget_position(_):
    """A resume that starts at the data's beginning again."""
    take_place = loop_file.Loop.take_place

    def without(self, state):
        take_place(self, {**state, "position": list(Position())})
    loop_file.Loop.take_place = without


def forget_random(_):
    """A resume whose dropout starts from the seed again."""
    resume.restore_random_states = lambda states: None


def forget_optimizer(_):
    """A resume with fresh moments."""
    restore = loop_file.Loop.restore

    def without(self, state):
        restore(self, {**state, "optimizers": [o.state_dict() for o in self.optimizers]})
    loop_file.Loop.restore = without


def forget_log(_):
    """A resume that leaves the lines of the lost steps in the log."""
    from tools.train_log import TrainLog
    TrainLog.resume_from = lambda self, step: None


def plain_save(_):
    """torch.save straight onto the final names, no list, no digest; a resume takes whatever lies there."""
    from tools.saving import run_folder

    def save(self, stem, payload, state=None, final=False, best=False):
        for ending, content in (("pkl", payload), ("state", state)):
            if content is not None:
                torch.save(content, self.path / f"TinySeek_Pre_plain.{ending}")
        if final:
            torch.save(payload, self.path / f"{stem}.pkl")

    def newest_good(self):
        path = self.path / "TinySeek_Pre_plain.pkl"
        if path.exists():
            return torch.load(path, weights_only=True), torch.load(path.with_suffix(".state"), weights_only=True)
    run_folder.RunFolder.save, run_folder.RunFolder.newest_good = save, newest_good
    run_folder.RunFolder.prune = lambda self, *_: None


# ---- signals at a given place ----

def signal_at(order):
    """order: [module, qualified name, call number, "before" | "after", signal numbers ...]: sent to this very process.

    The preflight, which trains a little on a copy, is left out: its calls would count.
    """
    from importlib import import_module

    from train_agent.trainers.running import diary
    diary.OpenedLoop.look_ahead = lambda self: None
    module, name, number, when, *signals = order
    owner = import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), []

    def wrapped(*arguments, **options):
        calls.append(1)
        hit = len(calls) == number
        if hit and when == "before":
            _send(signals)
        result = real(*arguments, **options)
        if hit and when == "after":
            _send(signals)
        return result
    setattr(owner, last, wrapped)


def _send(signals):
    for number in signals:
        os.kill(os.getpid(), signal.Signals(number))


def no_handlers(_):
    """Signals mean what they always mean."""
    from train_agent.trainers.running import signals_and_guards
    signals_and_guards.StopSignals.__enter__ = lambda self: self
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)

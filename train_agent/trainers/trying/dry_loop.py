"""Steps that leave no trace: a Loop on a copy of the model, for finders and checks."""

import copy
from dataclasses import replace

from tools.train_log import TrainLog
from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from train_agent.trainers.running import resume
from train_agent.trainers.dataset import Position, loader
from train_agent.trainers.loop import Loop


def copied(stage):
    """A copy of the stage's model. What is frozen in it is shared where nothing will move it: on one process's CPU."""
    model = stage.model
    stays = parallel.world() == 1 and machine.choose_device(stage.options["device"]).type == "cpu"
    frozen = [p for p in model.parameters() if stays and not p.requires_grad and p.device.type == "cpu"]
    return copy.deepcopy(model, {id(p): p for p in frozen})


class Rehearsal(Loop):
    """Use as a context manager. Afterwards model, random states, data and files are what they were.

    options: what is to differ from the stage's own.
    """

    def __init__(self, stage, **options):
        super().__init__(replace(stage, model=copied(stage), options={**stage.options, "num_workers": 0, **options}))

    def __enter__(self):
        self.before = resume.random_states()
        self.setup()
        self.choose()
        self.journal = TrainLog(None, None, self.stage.name)
        self.model.train()
        return self

    def __exit__(self, *_):
        resume.restore_random_states(self.before)

    def groups(self):
        """The batches of one optimizer step after the other, from the start again when the data is used up."""
        while True:
            for group, _, _ in loader(self.stage.train, Position(), self.options, self.device, parallel.rank(),
                                      parallel.world()):
                yield group

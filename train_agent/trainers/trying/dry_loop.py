"""Steps that leave no trace: a Loop on a copy of the model, for finders and checks."""

import copy
from dataclasses import replace

from tools.train_log import TrainLog
from train_agent.trainers import parallel
from train_agent.trainers.running import resume
from train_agent.trainers.dataset import Position, loader
from train_agent.trainers.loop import Loop


class Rehearsal(Loop):
    """Use as a context manager. Afterwards model, random states, data and files are what they were.

    options: what is to differ from the stage's own.
    """

    def __init__(self, stage, **options):
        super().__init__(
            replace(stage, model=copy.deepcopy(stage.model), options={**stage.options, "num_workers": 0, **options}))

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

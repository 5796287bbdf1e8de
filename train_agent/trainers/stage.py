"""A stage is data: which model, which batches, which loss, which weights learn, what its files are called."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from model.sampling import DEFAULTS
from tools.checkpoint import checkpoint_name
from tools.config.stages import TABLE
from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.hardware import sharding
from train_agent.trainers.dataset import PackedData
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.data.own_questions import own_exam, own_questions


@dataclass
class Stage:
    """Everything the loop needs to know about a kind of training. Building one starts nothing."""

    name: str                            # pre, sft, lora ...: the section of the configuration
    options: dict                        # flat resolved configuration of this stage
    model: nn.Module
    train: PackedData
    held: dict[str, PackedData]          # name -> held-out data; the first decides about best model and early stopping
    about: dict                          # what a .pkl of this stage says beside its weights, see tools/checkpoint.py
    identity: dict                       # hashes a resume has to find unchanged: data, vocabulary, base
    loss: Callable = next_tokens_loss    # (model, batch, totals) -> (scalar, sums to log)
    rates: Callable = None               # parameter name -> its own learning rate, None = init_lr for all
    player: Callable = None              # () -> what makes a step's batches with the weights of the step, see Player
    updates: int = 1                     # how often such a batch is learned from before the next one is made
    begin: Callable = None               # (device) -> notes; sets the first weights of a run that starts afresh
    notes: dict = field(default_factory=dict)   # extra fields for the log's header
    batch_names: bool = False            # file names end with the number of the batch (the gate's), not of the step

    @property
    def label(self):
        """Pre, SFT, Lora ...: the word in file names."""
        return TABLE[self.name].label

    def trainable(self):
        """(name, parameter, learning rate) of everything that learns."""
        rate = self.rates or (lambda name: self.options["init_lr"])
        return [(n, p, rate(n)) for n, p in self.model.named_parameters() if p.requires_grad]

    def file_name(self, place, batches, step=None):
        """Name of a checkpoint made in the chunk of Position `place`, `batches` of it done; step: for saves between
        chunks."""
        if self.batch_names:
            return checkpoint_name(self.label, place.chunk + 1, place.epoch + 1, batch=batches)
        return checkpoint_name(self.label, place.chunk + 1, place.epoch + 1, step=step)

    def weights(self):
        """What a checkpoint holds: all of a model, or only the learning tensors of an adapter."""
        if self.about["kind"] == "model":
            return dict(self.model.state_dict())
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def load(self, weights):
        """Put `weights` in place, with exactly the names of `weights()`. Tables of counts may have any size."""
        if self.about["kind"] == "model":
            with contextlib.suppress(RuntimeError):            # what does not fit is named below
                self.model.load_state_dict(weights)
                return
        own = self.weights()
        wrong = sorted(set(own) ^ set(weights)) + sorted(n for n in own if n in weights
                                                         and own[n].shape != weights[n].shape)
        if wrong:
            raise UserError(f"检查点和这次的模型对不上：{wrong[0]} 等 {len(wrong)} 个张量缺失、多余或形状不同。", 4)
        for name, tensor in own.items():
            tensor.copy_(weights[name])

    def payload(self, step, metrics):
        weights = sharding.for_file(self.weights(),
                                    parallel.is_main()) if sharding.is_sharded(self.model) else self.weights()
        talk = {"sampling": dict(DEFAULTS), "prompts": own_questions(self),           # how it wants to be talked to
                "exam": own_exam(self)}
        taught = getattr(getattr(self.train, "cache", None), "meta", {}).get("acts", ())
        if acts := sorted({*self.about["talk"].get("acts", ()), *taught}):
            talk["acts"] = acts
        return {"format": 1, **self.about, "talk": talk, "weights": weights, "step": step, "metrics": metrics,
                "run": self.options}

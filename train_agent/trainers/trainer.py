"""The loop for people who call it from Python.

    Trainer("model_config.json", stage="sft").train()                     # a stage of a configuration
    Trainer(model, train_dataset, val_dataset, TrainingConfig()).train()  # any module that maps tokens to logits
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from model import TinySeek
from model.config import MODEL_KEYS
from model.kernels.cross_entropy import IGNORE
from tools.config.compare import fingerprint
from tools.config_manager import ConfigManager
from tools.errors import UserError
from tools.saving.archive import write_torch
from tools.vocab import Vocab
from train_agent.trainers import parallel
from train_agent.trainers.running import resume as recovery
from train_agent.trainers.data.count_ngrams import count_training
from train_agent.trainers.running.evaluation import evaluate
from train_agent.trainers.losses import share_of_step
from train_agent.trainers.loop import Loop
from train_agent.trainers.running.minutes import timed_stage
from train_agent.trainers.build_stage import about, builder, prepare_machine
from train_agent.trainers.stage import Stage
from train_agent.trainers.data.for_own_loops import PairData


@dataclass
class TrainingConfig:
    """What Trainer(model, train_dataset, val_dataset, config) needs to know. A name of the configuration not here goes
    into `more`."""

    batch_size: int = 32
    seq_len: int = 128
    epochs: int = 10
    learning_rate: float = 3e-4
    warmup_steps: int = 1000
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_interval: int = 500
    save_interval: int = 5000
    optimizer: str = "adamw"
    scheduler: str = "cosine"
    seed: int = 0
    device: str = "auto"
    mixed_precision: str = "auto"
    resume: str = "none"            # somebody's own data set has no digest that would say whether it is still the same
    output_dir: str = "out"
    run_name: str = "trainer"
    more: dict = None

    def options(self):
        """The flat options of the loop. UserError 2 for a value that cannot be."""
        given = {k: v for k, v in asdict(self).items() if k != "more"} | (self.more or {})
        folder = Path(self.output_dir, self.run_name)
        given = {"log_dir": str(folder / "logs"), "log_file": str(folder / "log.txt"), **given}
        return ConfigManager(given, stage="pre").stage("pre")


class Trainer:
    """Trainer(config, model=None, stage=None) or Trainer(model, train_dataset, val_dataset=None, config=None,
    tokenizer=None).

    config: path of a file, ConfigManager or dict of its keys, foreign names included; or, in the second form, a
    TrainingConfig.
    stage: pre, sft ...; by default what `training_mode` says. A given model takes the place of the one the
    configuration describes. The data sets hold (tokens, targets) pairs, see TextDataset; the model maps tokens (B, T)
    to logits (B, T, V), or to an output with .logits and perhaps .aux_loss.
    """

    def __init__(self, *args, **named):
        own_module = isinstance(args[0], nn.Module) if args else "train_dataset" in named
        self.stage = module_stage(*args, **named) if own_module else config_stage(*args, **named)
        self.loop, self.ready = EpochLoop(self.stage), False

    @property
    def model(self):
        return self.stage.model

    def train(self):
        """To the end of the last epoch, or of max_steps -> metrics of the last step and of the held-out data."""
        return self._work(self._to_the_end)

    def train_epoch(self):
        """What is left of the current epoch, or the next one -> mean loss of its steps. UserError 2 when all are
        done."""
        return self._work(self._one_epoch)

    def evaluate(self):
        """Held-out loss, nats per target (both heads together). UserError 2 without held-out data."""
        if not self.stage.held:
            raise UserError("没有留出数据，不能评估：请给 val_dataset，或在配置里写 eval_share、eval_data_path。")
        data = next(iter(self.stage.held.values()))
        return self._work(lambda: evaluate(self.loop.wrapped, data, self.loop.device, self.loop.precision,
                                           self.stage.loss)["loss"])

    def save_checkpoint(self, path):
        """Weights into `path` (.pkl), optimizer and all the rest into the .state beside it -> path of the .pkl."""
        path = Path(path).with_suffix(".pkl")

        def save():
            payload, state = self.stage.payload(self.loop.step, self.loop.metrics), self.loop.state()
            state |= {"final": False, "fingerprint": fingerprint(self.stage.options), "identity": self.stage.identity}
            parallel.from_main(lambda: write_pair(path, payload, state))
            return path
        return self._work(save)

    def _work(self, work):
        with self.loop.at_work():
            if not self.ready:
                self.loop.prepare()
                self.ready = True
            return work()

    def _to_the_end(self):
        self.loop.until = None
        if not self.loop.complete:
            self.loop.train()
            self.loop.finish()
        self.loop.saver.end()
        return {**self.loop.metrics, **self.loop.held}

    def _one_epoch(self):
        loop, data = self.loop, self.stage.train
        if loop.over():
            raise UserError(f"{data.epochs} 轮已经训练完（max_epochs），没有下一轮了。")
        loop.until, loop.losses = loop.position.epoch + (loop.position.chunk >= data.chunks), []
        loop.train()
        loop.until = None
        return sum(loop.losses) / len(loop.losses)


class EpochLoop(Loop):
    """A Loop that can stop at the end of epoch `until`."""

    def __init__(self, stage):
        super().__init__(stage)
        self.until, self.losses = None, []

    def over(self):
        here, data = self.position, self.stage.train
        done = self.until is not None and (here.epoch > self.until or here.epoch == self.until
                                           and here.chunk >= data.chunks)
        return done or super().over()

    def optimize(self, group, chunk):
        super().optimize(group, chunk)
        self.losses.append(self.metrics["loss"])


def write_pair(path, payload, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = write_torch(path, payload)
    write_torch(path.with_suffix(".state"), {**state, "pkl_sha256": digest})


# ---- a configuration's stage ----

def config_stage(config, model=None, stage=None):
    if isinstance(config, ConfigManager):
        manager, stage = config, stage or config.stage_name
    else:
        manager = ConfigManager(config, stage=stage)
    stage = stage or _stage_of(manager)
    options = manager.stage(stage)
    if model is not None:
        if not isinstance(model, TinySeek):
            raise UserError(
                "Trainer(config, model) 的 model 应是 TinySeek；别的模型请用 Trainer(model, train_dataset, val_dataset, config)。")
        options |= {k: v for k, v in model.config.to_dict().items() if k in MODEL_KEYS}
        options |= {"pretraining_model_path": None, "init_from": None}
    built = timed_stage(builder(stage), options)
    if model is not None:
        if built.about["config"]["vocab_size"] > model.config.vocab_size:
            raise UserError(
                f"词表有 {built.about['config']['vocab_size']} 项，给的模型只有 {model.config.vocab_size} 个。请用这个词表的大小建模型。", 4)
        built.model, built.about["config"] = model, model.config.to_dict()
        count_training(built)
    return built


def _stage_of(manager):
    """pre, or sft where the configuration asks for instruction fine-tuning everywhere."""
    return "sft" if manager.config["pre"]["training_mode"] == "instruction_finetuning" else "pre"


# ---- somebody's own module and data ----

def module_stage(model, train_dataset, val_dataset=None, config=None, tokenizer=None):
    options = (config or TrainingConfig()).options()
    if options["init_from"] or options["pretraining_model_path"]:
        raise UserError("Trainer(model, …) 的权重就是给它的模型：请先自己载入，去掉 init_from 和 pretraining_model_path。")
    prepare_machine(options)
    recovery.seed_everything(options["seed"])
    ours = isinstance(model, TinySeek)
    vocab = tokenizer if isinstance(tokenizer, Vocab) else None
    described = about("pre", vocab, model.config.to_dict() if ours else {}, {})
    held = {} if val_dataset is None else {"held": PairData(val_dataset, options, shuffle=False)}
    return Stage("pre", options, model, PairData(train_dataset, options), held, described, {},
                 pair_loss if ours else logits_loss)


def pair_loss(model, batch, totals):
    """Both heads of a TinySeek on (tokens, targets)."""
    return share_of_step(model(batch.ids, labels_1=batch.labels[0], labels_2=batch.labels[1]), batch, totals)


def logits_loss(model, batch, totals):
    """Cross-entropy of any module's logits, and its auxiliary loss where it has one, as this micro-batch's share of the
    step."""
    out = model(batch.ids)
    logits, extra = getattr(out, "logits", out), getattr(out, "aux_loss", None)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits.flatten(0, -2), batch.labels[0].flatten(), ignore_index=IGNORE, reduction="sum")
    loss, sums = total / max(1, totals["targets_1"]), {"ce_1": total.detach()}
    if extra is not None:
        loss = loss + extra * (batch.tokens / max(1, totals["tokens"]))
        sums["router_aux"] = extra.detach() * batch.tokens
    return loss, sums

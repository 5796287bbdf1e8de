"""What LoRA, prefix and memory stages share: a frozen base, an adapter on top, files that hold the adapter alone."""

import os
import re
from pathlib import Path

from model.build import attach, build
from tools.checkpoint import load_chain, read_checkpoint, weights_hash
from tools.errors import UserError
from tools.saving.start_files import start_name
from train_agent.trainers.running import resume
from train_agent.trainers.data.count_ngrams import leave_out
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.build_stage import (fitting_shape, found_start, open_vocab, packed_data, prepare_machine,
                                              shape_of)
from train_agent.trainers.stage import Stage

BASE_KEY = "pretraining_model_path"
WAYS_ON = "请先运行 python run.py（或 train_agent/sft_train.py），或用 --pretraining_model_path 指定。"


def adapter_stage(name, label, options, describe, loss=next_tokens_loss, rates=None):
    """A Stage that trains one adapter on the model at `pretraining_model_path`, which may itself carry adapters.

    describe(options, vocab) -> {"type": ..., keywords of apply_lora, apply_prefix or apply_memory}. Raises UserError: 2 the base
    or the adapter is not named rightly, 3 no base there, 4 base, vocabulary or init_from do not fit.
    """
    prepare_machine(options)
    chain = load_base_chain(options, label)
    vocab = open_vocab(options, chain[0])
    adapter = describe(options, vocab)
    digest = weights_hash(chain[-1]["weights"])
    model = frozen_model(options, vocab, chain)
    options = {**options, **shape_of(model.config)}
    resume.seed_everything(options["seed"])
    try:
        attach(model, adapter)
    except ValueError as error:
        raise UserError(f"{explained(error)}。", 2) from None
    train, held, identity, notes = packed_data(options, vocab)
    leave_out(model, train, *held.values())
    about = {"kind": "adapter", "stage": label, "config": model.config.to_dict(), "vocab_hash": vocab.hash, "vocab": vocab.state(),
             "adapter": adapter, "base": {"path": path_from(options, options[BASE_KEY]), "hash": digest},
             "starts": {start_name(options[BASE_KEY]): digest}}
    stage = Stage(name, label, options, model, train, held, about, {**identity, "底座": digest[:16]}, loss, rates, notes=notes)
    if options["init_from"]:
        take_weights(stage, options["init_from"])
    return stage


def load_base_chain(options, label):
    path = options[BASE_KEY]
    if not path:
        raise UserError("适配器要有底座：请用 --pretraining_model_path 指定一个训练好的模型。")
    path = found_start(options, label, path, "底座", WAYS_ON)
    chain = load_chain(path)
    if chain[-1]["kind"] == "gate":
        raise UserError(f"{path} 是选择门，不能作适配器的底座。请指定一个模型或适配器。", 4)
    return chain


def frozen_model(options, vocab, chain):
    """The base as a module without gradients, shaped by its file, trained with this run's dropout, alpha and checkpointing."""
    config = fitting_shape(options, vocab, chain[0])
    try:
        return build([{**chain[0], "config": config.to_dict()}, *chain[1:]])
    except ValueError as error:
        raise UserError(f"{options[BASE_KEY]} 和它的底座对不上：{error}", 4) from None


REASONS = [
    (r"'(.*)' matches no projection; there are: (.*)", "模型里没有叫 {0} 的部位。lora_targets 可选：{1}"),
    (r"no projection is named; there are: (.*)", "没有写 lora_targets。可选：{0}"),
    (r"rank (\S+) must lie between 1 and (\d+),.*", "rank={0} 不行，所选部位的矩阵只允许 1 到 {1}"),
    (r"memory layers (.*) must be different numbers from 0 to (\d+)", "memory_layers={0} 不行，应是互不相同的层号，从 0 到 {1}"),
]


def explained(error):
    """What the model complains about, in the user's words where a user can cause it."""
    for pattern, chinese in REASONS:
        found = re.fullmatch(pattern, str(error), re.S)
        if found:
            return chinese.format(*found.groups())
    return str(error)


def path_from(options, path):
    """How a file is named in a checkpoint of this run: from its folder if they share a disk, so that both may move together."""
    folder = Path(options["out_dir"], options["name"] or "")
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:                                  # another drive on Windows
        return Path(path).as_posix()


def take_weights(stage, path):
    """Start from the weights of another adapter of the same kind on the same base (init_from)."""
    payload = read_checkpoint(found_start(stage.options, stage.label, path, "适配器", "请检查 --init_from。"))
    shape, own = ({k: v for k, v in (p["adapter"] or {}).items() if k not in ("scale", "dropout")} for p in (payload, stage.about))
    if payload["kind"] != "adapter" or shape != own:
        raise UserError(f"init_from {path} 不是同样设置的{stage.label}适配器，权重不能用。底座请用 --pretraining_model_path 指定。", 4)
    if payload["base"]["hash"] != stage.about["base"]["hash"]:
        raise UserError(f"init_from {path} 是在另一个底座上训练的，权重不能用。", 4)
    stage.about["starts"][start_name(path)] = weights_hash(payload["weights"])
    stage.load(payload["weights"])

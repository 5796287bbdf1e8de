"""From a resolved configuration to a Stage: the steps that all kinds of training share."""

import os
import sys
from importlib import import_module
from pathlib import Path

import torch

from tools.checkpoint import acts_of, read_checkpoint, weights_hash
from tools.config.stages import TABLE
from tools.errors import UserError
from tools.formats import dropped_text, fields_of
from tools.reading.hub import local_files
from tools.reading.workers import processors
from tools.saving.start_files import start_name
from train_agent.trainers import parallel
from train_agent.trainers.data.count_ngrams import count_training, leave_out
from train_agent.trainers.data.replay import add_general
from train_agent.trainers.data.teacher import learn_from_teacher, take_vocab
from train_agent.trainers.data.split import digest_of, divided, learnable
from train_agent.trainers.data.token_cache import open_cache
from train_agent.trainers.dataset import PackedData
from train_agent.trainers.hardware import machine
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.running import resume
from train_agent.trainers.stage import Stage
from train_agent.trainers.start_model import (BASE_KEY, build_model, found_start, frozen_model, load_base,
                                              load_base_chain, open_vocab, put_on, same_adapter, shape_of,
                                              with_base_file)

SPEAKS = "请先运行 python train_agent/sft_train.py（或 python run.py），或用 --pretraining_model_path 指定一个对话模型。"
_told = set()           # caches of which it was said


def builder(name):
    """The build_stage(options) of the stage `name` (pre, sft ...), as the table of stages says."""
    return import_module(f"train_agent.trainers.{TABLE[name].module}").build_stage


def prepare_machine(options):
    """Device and threads, checked before any data is touched."""
    device = machine.choose_device(options["device"])
    torch.set_num_threads(options["threads"] or min(torch.get_num_threads(), processors()))  # torch knows no quota
    parallel.start(device)
    return device


# ---- what a stage says about itself ----

def about(name, vocab, config, starts, kind="model", adapter=None, base=None, acts=()):
    """What a .pkl of the stage `name` says beside its weights.

    config: the model's, a dict; vocab: None where it is not ours; starts: {name of a file it starts from: weights
    hash}; acts: what the weights that it starts from had learned beside speaking
    """
    known = {"vocab_hash": vocab.hash, "vocab": vocab.state()} if vocab else {"vocab_hash": "", "vocab": {}}
    return {"kind": kind, "stage": TABLE[name].label, "config": config, **known, "adapter": adapter, "base": base,
            "starts": starts, "talk": {"acts": list(acts)}}


def identity(vocab, cache, **more):
    """What a resume has to find unchanged, by its Chinese name."""
    return {"数据": digest_of(cache), "词表": vocab.hash[:16], **more}


def path_from(options, path):
    """How a file is named in a checkpoint of this run: from its folder if they share a disk, so that both may move
    together."""
    folder = Path(options["out_dir"], options["name"] or "")
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:                                  # another drive on Windows
        return Path(path).as_posix()


# ---- its data ----

def cached(options, vocab, data):
    """The token cache of these files; what their rows say and nobody learns is told once."""
    cache = parallel.main_first(lambda: open_cache(
        local_files(data, options), vocab, options["training_mode"], options["cache_dir"], fields_of(options),
        options["max_bad_share"],
        Path(options["log_dir"]) / "bad_lines.jsonl", verify=parallel.is_first_here(),
        thinking=options["thinking"]))
    said = dropped_text(cache.meta["dropped"])[0]
    if said and parallel.is_main() and cache.name not in _told:
        _told.add(cache.name)
        print(f"数据里有内容没有学：{said}。", file=sys.stderr)
    return cache


def training_and_held(split, make):
    """-> training data, {"held": held-out data} or {}. make(cache, documents, shuffle) -> PackedData"""
    training = make(split.cache, split.training, True)
    return training, {"held": make(split.held_cache, split.held, False)} if len(split.held) else {}


def packed_data(options, vocab, model):
    """-> training PackedData, {name: held-out PackedData}, identity of the data, notes for the log."""
    truncate = options["training_mode"] != "pretraining"
    if options["replay_share"] and not truncate:
        raise UserError("replay_share 用于对话。预训练要混入别的文本，请把文件一起写进 json_data_path。")
    split = divided(options, lambda paths: cached(options, vocab, paths), learnable(options["max_len"], truncate))
    same, general = identity(vocab, split.cache), {}
    train, held = training_and_held(
        split, lambda cache, documents, shuffle: PackedData(cache, documents, options, truncate, shuffle))
    if truncate:                                       # dialogues: an adaptation, which may forget
        train, held, general = add_general(options, train, held, model, lambda paths: cached(options, vocab, paths))
    return train, held, same | general, split.notes()


# ---- whole stages ----

def full_model_stage(name, options, ways_on):
    """A Stage in which every weight of the model learns, from nothing or from another full model's weights."""
    prepare_machine(options)
    options = with_base_file(options)
    start = options["init_from"] or options["pretraining_model_path"]
    base = load_base(options, name, start, ways_on) if start else None
    known = Path(options["vocab_trg_path"]).exists()
    if base is None:
        take_vocab(options)
    vocab = open_vocab(options, base)
    model = build_model(options, vocab, base)
    options = {**options, **shape_of(model.config)}
    try:
        train, held, same, notes = packed_data(options, vocab, model)
    except UserError:                                  # of data that is not fit for use no vocabulary stays either
        if base is None and not known and parallel.is_main():
            Path(options["vocab_trg_path"]).unlink(missing_ok=True)
        raise
    starts = {}
    if base:
        digest = weights_hash(base["weights"])
        starts, same["起点模型"] = {start_name(start): digest}, digest[:16]
    described = about(name, vocab, model.config.to_dict(), starts, acts=acts_of([base] if base else []))
    stage = Stage(name, options, model, train, held, described, same, notes=notes)
    count_training(stage)
    return learn_from_teacher(stage)


def speaking_start(name, options, device, data, row):
    """What a stage starts from that changes how a model speaks which speaks already -> (options with the model's shape
    and a settled precision, vocabulary, model, what a .pkl says of it, digest of the start's weights). Only head 1
    learns: the second one does not speak.

    data, row: what json_data_path holds, and a line of it (Chinese). UserError: 2 start or data are not named, 3 no
    model there, 4 no whole model, or of another vocabulary.
    """
    options, path = settled(options, device), options["init_from"] or options["pretraining_model_path"]
    if not path:
        raise UserError(f"{TABLE[name].title}要从一个会对话的模型开始。{SPEAKS}")
    base = load_base(options, name, path, SPEAKS)
    if not options["json_data_path"]:
        raise UserError(f"{TABLE[name].title}要有{data}：--json_data_path 文件.jsonl，每行 {row}。")
    vocab = open_vocab(options, base)
    model, digest = build_model(options, vocab, base), weights_hash(base["weights"])
    for head in model.heads()[1:]:
        head.requires_grad_(False)
    described = about(name, vocab, model.config.to_dict(), {start_name(path): digest}, acts=acts_of([base]))
    return {**options, **shape_of(model.config)}, vocab, model, described, digest


def settled(options, device):
    """Options with a precision that two starts choose alike: what is kept between them must not hang on a timing. Sums
    over hundreds of tokens are compared, so a CPU takes float32 unless it is told otherwise."""
    if options["replay_share"]:
        raise UserError("这个阶段不混入通用数据：请去掉 replay_share。")
    if options["mixed_precision"] == "auto":
        options = {**options, "mixed_precision": "no" if device.type == "cpu"
                   else machine.choose_precision("auto", device)}
    return options


def adapter_stage(name, options, describe, loss=next_tokens_loss, rates=None):
    """A Stage that trains one adapter on the model at `pretraining_model_path`, which may itself carry adapters.

    describe(options, vocab) -> {"type": ..., keywords of apply_lora, apply_prefix or apply_memory}. Raises UserError: 2
    the base or the adapter is not named rightly, 3 no base there, 4 base, vocabulary or init_from do not fit.
    """
    prepare_machine(options)
    options = with_base_file(options)
    chain = load_base_chain(options, name)
    vocab, digest = open_vocab(options, chain[0]), weights_hash(chain[-1]["weights"])
    adapter = describe(options, vocab)
    model = frozen_model(options, vocab, chain)
    options = {**options, **shape_of(model.config)}
    resume.seed_everything(options["seed"])
    put_on(model, adapter)
    train, held, same, notes = packed_data(options, vocab, model)
    leave_out(model, train, *held.values())
    base = {"path": path_from(options, options[BASE_KEY]), "hash": digest}
    described = about(name, vocab, model.config.to_dict(), {start_name(options[BASE_KEY]): digest}, "adapter", adapter,
                      base)
    stage = Stage(name, options, model, train, held, described, {**same, "底座": digest[:16]}, loss, rates, notes=notes)
    if options["init_from"]:
        take_weights(stage, options["init_from"])
    return stage


def take_weights(stage, path):
    """Start from the weights of another adapter of the same kind on the same base (init_from)."""
    payload = read_checkpoint(found_start(stage.options, stage.name, path, "适配器", "请检查 --init_from。"))
    if payload["kind"] != "adapter" or not same_adapter(payload["adapter"], stage.about["adapter"]):
        raise UserError(f"init_from {path} 不是同样设置的{stage.label}适配器，权重不能用。"
                        "底座请用 --pretraining_model_path 指定。", 4)
    if payload["base"]["hash"] != stage.about["base"]["hash"]:
        raise UserError(f"init_from {path} 是在另一个底座上训练的，权重不能用。", 4)
    stage.about["starts"][start_name(path)] = weights_hash(payload["weights"])
    stage.load(payload["weights"])

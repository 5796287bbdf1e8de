"""From a resolved configuration to the parts of a Stage: vocabulary, model, packed data."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from model import ModelConfig, TinySeek
from model.config import MODEL_KEYS
from tools.checkpoint import load_chain, read_checkpoint, weights_hash
from tools.config_manager import ConfigManager
from tools.errors import UserError
from tools.formats import dropped_text, fields_of
from tools.reading.hub import is_hf, local_files
from tools.reading.workers import processors
from tools.saving.run_folder import RunFolder
from tools.saving.start_files import linked, start_file, start_name, where_it_went
from tools.vocab import Vocab, file_names
from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from train_agent.trainers.running import resume
from train_agent.trainers.data.count_ngrams import count_training
from train_agent.trainers.dataset import PackedData
from train_agent.trainers.data.replay import add_general
from train_agent.trainers.data.split import divided, learnable
from train_agent.trainers.stage import Stage
from train_agent.trainers.data.token_cache import open_cache

# These may differ between a checkpoint and the run that goes on from its weights: they shape training, not tensors.
NOT_SHAPE = ("vocab_size", "pad_idx", "dropout", "alpha", "router_noise", "router_bias_rate", "gradient_checkpointing",
             "moe_loss", "router_z_loss", "init_std", "max_position", "fc2_every", "fc2_gradient")


_told = set()           # caches of which it was said


def prepare_machine(options):
    """Device and threads, checked before any data is touched."""
    device = machine.choose_device(options["device"])
    torch.set_num_threads(options["threads"] or min(torch.get_num_threads(), processors()))     # torch does not know a quota
    parallel.start(device)
    return device


def found_start(options, label, path, what, ways_on):
    """Where the file lies that this run starts from: at `path`, or where the run itself has moved it. UserError 3 when it is gone.

    what, ways_on: what it is, and what the user can do when it is not there (Chinese).
    """
    def hash_of(place):
        return weights_hash(read_checkpoint(place)["weights"])
    found = start_file(path, RunFolder(options["out_dir"], label, options["name"]), hash_of)
    if not found.is_file():
        raise UserError(f"找不到{what} {path}。{where_it_went(path)}{ways_on}", 3)
    if found != linked(path) and parallel.is_main():
        print(f"{what} {Path(path).name} 已经移走，从 {found} 读取。", file=sys.stderr)
    return found


def load_base(options, label, path, ways_on):
    """The payload of a full model to start from. `ways_on`: what the user can do when it is not there (Chinese)."""
    path = found_start(options, label, path, "起点模型", ways_on)
    chain = load_chain(path)
    if chain[-1]["kind"] != "model":
        raise UserError(f"{path} 是{chain[-1]['stage']}适配器，不是完整的模型。请先用 chat_agent/export.py --to merged 合并。", 4)
    return chain[-1]


def made_here(options):
    """Whether the vocabulary's path is one that trainings themselves write to, vocab.json or vocab_tiny.json in out_dir: what lies there
    may be of another training, and says nothing about what the user wants."""
    path = Path(options["vocab_trg_path"])
    return path.parent == Path(options["out_dir"]) and path.name.startswith("vocab")


def open_vocab(options, base=None):
    """The run's vocabulary: the base's own when there is a base, else the file, else built from the data and saved."""
    path = Path(options["vocab_trg_path"])
    if base is None:
        vocab = parallel.main_first(lambda: Vocab(None if path.exists() else local_files(options["vocab_data_path"], options), path,
                                                 options["vocab_size"], options["token_kind"], cache_dir=options["cache_dir"],
                                                 text_field=fields_of(options)))
        tell_unused(options, vocab, f"{path} 早先", f"请删掉它重新预训练，或用 --vocab_trg_path 换一个新文件（如 {path.with_name('vocab_2.json')}）")
        return vocab
    if path.exists() and not made_here(options) and Vocab.load_vocab(path).hash != base["vocab_hash"]:
        raise UserError(f"词表 {path} 和起点模型的词表不同，编号对不上。请用训练起点模型时的词表，或去掉 --vocab_trg_path（模型自带词表）。", 4)
    vocab = Vocab.from_state(base["vocab"])
    tell_unused(options, vocab, "起点模型的词表", "请用这个 --vocab_data_path 重新预训练（换一个 --out_dir），再从新模型开始")
    return vocab


def tell_unused(options, vocab, whose, cure):
    """Say it when files were named for a vocabulary that is there already and has not seen them."""
    listed = ([value] if isinstance(value, str) else value or [] for value in (options["vocab_data_path"], options["json_data_path"]))
    named, own = (set(file_names([path for path in paths if not is_hf(path)])) for paths in listed)
    unused = sorted(named - set(vocab.built_from or named))
    if unused and named - own and parallel.is_main():      # a file beside the stage's own data: it was named, not filled in
        print(f"警告：--vocab_data_path 里的 {'、'.join(unused)} 没有用上：{whose}是由 {'、'.join(vocab.built_from)} 建成的，"
              f"它们的字词会被拆开。要让词表覆盖它们，{cure}。", file=sys.stderr)


def build_model(options, vocab, base=None):
    """A TinySeek for this configuration, with the base's weights when there is one."""
    resume.seed_everything(options["seed"])
    if base is None:
        return TinySeek(wanted_shape(options, vocab))
    model = TinySeek(fitting_shape(options, vocab, base))
    model.load_state_dict(base["weights"], strict=True)
    return model


def wanted_shape(options, vocab):
    try:
        return ModelConfig.from_dict({k: options[k] for k in MODEL_KEYS} | {"vocab_size": len(vocab)})
    except ValueError as error:                        # what depends on the vocabulary; the rest was refused earlier, in Chinese
        raise UserError(f"这样的模型做不出来：{error}", 2) from None


def fitting_shape(options, vocab, base):
    """The ModelConfig to go on with from `base`: its own shape where the user says nothing. UserError 4 where he asks for
    other tensors."""
    had, own = ModelConfig.from_dict(base["config"]), options.get("own_shape", MODEL_KEYS)
    wanted = wanted_shape({**options, **{k: v for k, v in shape_of(had).items() if k not in own}}, vocab)
    differing = [(k, getattr(had, k), getattr(wanted, k)) for k in MODEL_KEYS
                 if k not in NOT_SHAPE and getattr(had, k) != getattr(wanted, k)]
    if differing:
        listed = "；".join(f"{k}: 模型 {old}，配置 {new}" for k, old, new in differing[:5])
        preset = preset_of(had)
        way = f"它是预设 {preset} 的结构：请用 --preset {preset}" if preset else "请去掉这些键（结构跟着起点模型走）"
        raise UserError(f"起点模型的结构和配置不同（{listed}）。{way}，或用新的结构重新预训练。", 4)
    if had.position == "learned" and had.max_position < options["max_len"]:
        raise UserError(f"起点模型只学过 {had.max_position} 个位置，这个阶段的 max_len={options['max_len']}。"
                        f"请用 --max_len {had.max_position}，或用更大的 max_position 重新预训练。", 4)
    return replace(wanted, vocab_size=had.vocab_size, max_position=had.max_position)


def shape_of(config):
    """{key: value} of a ModelConfig, as far as it shapes tensors."""
    return {k: getattr(config, k) for k in MODEL_KEYS if k not in NOT_SHAPE}


def preset_of(config):
    """The name of the preset that makes models of this shape, or None."""
    for name in ConfigManager().config["presets"]:
        keys = ConfigManager(preset=name).model()
        if all(keys[k] == v for k, v in shape_of(config).items()):
            return name
    return None


def cached(options, vocab, data):
    """The token cache of these files; what their rows say and nobody learns is told once."""
    cache = parallel.main_first(lambda: open_cache(
        local_files(data, options), vocab, options["training_mode"], options["cache_dir"], fields_of(options), options["max_bad_share"],
        Path(options["log_dir"]) / "bad_lines.jsonl", verify=parallel.is_first_here()))
    said = dropped_text(cache.meta["dropped"])[0]
    if said and parallel.is_main() and cache.name not in _told:
        _told.add(cache.name)
        print(f"数据里有内容没有学：{said}。", file=sys.stderr)
    return cache


def packed_data(options, vocab):
    """-> training PackedData, {"held": held-out PackedData} or {}, identity hashes of the data, notes for the log."""
    truncate = options["training_mode"] != "pretraining"
    if options["replay_share"] and not truncate:
        raise UserError("replay_share 用于对话。预训练要混入别的文本，请把文件一起写进 json_data_path。")
    split = divided(options, lambda paths: cached(options, vocab, paths), learnable(options["max_len"], truncate))
    identity = {"数据": "+".join(d[:16] for d in split.cache.meta["digests"]), "词表": vocab.hash[:16]}
    train = PackedData(split.cache, split.training, options, truncate)
    sets = {"held": PackedData(split.held_cache, split.held, options, truncate, shuffle=False)} if len(split.held) else {}
    if truncate:                                       # dialogues: an adaptation, which may forget
        train, sets, more = add_general(options, train, sets, truncate, lambda paths: cached(options, vocab, paths))
        identity |= more
    return train, sets, identity, split.notes()


def full_model_stage(name, label, options, ways_on):
    """A Stage in which every weight of the model learns, from nothing or from another full model's weights."""
    prepare_machine(options)
    start = options["init_from"] or options["pretraining_model_path"]
    base = load_base(options, label, start, ways_on) if start else None
    known = Path(options["vocab_trg_path"]).exists()
    vocab = open_vocab(options, base)
    model = build_model(options, vocab, base)
    options = {**options, **shape_of(model.config)}
    try:
        train, held, identity, notes = packed_data(options, vocab)
    except UserError:                                  # of data that is not fit for use no vocabulary stays either
        if base is None and not known and parallel.is_main():
            Path(options["vocab_trg_path"]).unlink(missing_ok=True)
        raise
    starts = {start_name(start): weights_hash(base["weights"])} if base else {}
    if base:
        identity["起点模型"] = starts[start_name(start)][:16]
    about = {"kind": "model", "stage": label, "config": model.config.to_dict(), "vocab_hash": vocab.hash, "vocab": vocab.state(),
             "adapter": None, "base": None, "starts": starts}
    stage = Stage(name, label, options, model, train, held, about, identity, notes=notes)
    count_training(stage)
    return stage

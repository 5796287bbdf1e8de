"""What a stage starts from: its vocabulary, and a model made anew, taken from a file, or frozen below an adapter."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from model import ModelConfig, TinySeek
from model.build import attach, build
from model.config import MODEL_KEYS
from tools.checkpoint import load_chain, read_checkpoint, weights_hash
from tools.config.keys import KEYS, STRETCH
from tools.config.stages import TABLE
from tools.config_manager import ROOT, ConfigManager
from tools.errors import UserError
from tools.formats import fields_of
from tools.reading.hub import is_hf, local_files
from tools.saving.run_folder import RunFolder
from tools.saving.start_files import linked, start_file, where_it_went
from tools.vocab import Vocab, file_names
from train_agent.trainers import parallel
from train_agent.trainers.running import resume

# These may differ between a checkpoint and the run that goes on from its weights: they shape training, not tensors, or
# follow from the vocabulary and the positions that the model has learned.
NOT_SHAPE = (*(name for name in MODEL_KEYS if KEYS[name].change != "never"), "vocab_size", "pad_idx", "init_std",
             "max_position")
BASE_KEY = "pretraining_model_path"
WAYS_ON = "请先运行 python run.py（或 train_agent/sft_train.py），或用 --pretraining_model_path 指定。"


# ---- files ----

def found_start(options, stage, path, what, ways_on):
    """Where the file lies that this run starts from: at `path`, or where the run itself has moved it. UserError 3 when
    it is gone.

    what, ways_on: what it is, and what the user can do when it is not there (Chinese).
    """
    def hash_of(place):
        return weights_hash(read_checkpoint(place)["weights"])
    found = start_file(path, RunFolder(options["out_dir"], TABLE[stage].label, options["name"]), hash_of)
    if not found.is_file():
        raise UserError(f"找不到{what} {path}。{where_it_went(path)}{ways_on}", 3)
    if found != linked(path) and parallel.is_main():
        print(f"{what} {Path(path).name} 已经移走，从 {found} 读取。", file=sys.stderr)
    return found


def with_base_file(options):
    """The same options; a folder in the shape of transformers to start from is brought into a .pkl in out_dir/bases
    first, by chat_agent/export.py in a process of its own. Once: as long as the folder stays as it is."""
    folders = {key: Path(options[key]) for key in (BASE_KEY, "init_from") if options.get(key) and
               Path(options[key]).is_dir()}
    return {**options, **{key: str(parallel.main_first(lambda: brought(folder, options)))
                          for key, folder in folders.items()}}


def brought(folder, options):
    """The .pkl of a folder. UserError as export.py says."""
    files = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(folder.iterdir())]
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:8]
    target = Path(options["out_dir"], "bases", f"{folder.name}_{digest}.pkl")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, str(Path(ROOT, "chat_agent/export.py")), "--from", "hf", str(folder),
                               "--output", str(target)], capture_output=True, encoding="utf-8", errors="replace",
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        if done.returncode:
            raise UserError((done.stderr.strip().splitlines() or ["没有说为什么。"])[-1].removeprefix("错误："),
                            done.returncode)
        print(f"{folder} 已带成 {target}。", file=sys.stderr)
    return target


def load_base(options, stage, path, ways_on):
    """The payload of a full model to start from. `ways_on`: what the user can do when it is not there (Chinese)."""
    path = found_start(options, stage, path, "起点模型", ways_on)
    chain = load_chain(path)
    if chain[-1]["kind"] != "model":
        raise UserError(f"{path} 是{chain[-1]['stage']}适配器，不是完整的模型。请先用 chat_agent/export.py --to merged 合并。", 4)
    return chain[-1]


def load_base_chain(options, stage):
    path = options[BASE_KEY]
    if not path:
        raise UserError("适配器要有底座：请用 --pretraining_model_path 指定一个训练好的模型。")
    path = found_start(options, stage, path, "底座", WAYS_ON)
    chain = load_chain(path)
    if chain[-1]["kind"] == "gate":
        raise UserError(f"{path} 是选择门，不能作适配器的底座。请指定一个模型或适配器。", 4)
    return chain


# ---- vocabulary ----

def made_here(options):
    """Whether the vocabulary's path is one that trainings themselves write to, vocab.json or vocab_tiny.json in
    out_dir: what lies there may be of another training, and says nothing about what the user wants."""
    path = Path(options["vocab_trg_path"])
    return path.parent == Path(options["out_dir"]) and path.name.startswith("vocab")


def open_vocab(options, base=None):
    """The run's vocabulary: the base's own when there is a base, else the file, else built from the data and saved."""
    path = Path(options["vocab_trg_path"])
    if base is None:
        vocab = parallel.main_first(
            lambda: Vocab(None if path.exists() else local_files(options["vocab_data_path"], options), path,
                          options["vocab_size"], options["token_kind"], cache_dir=options["cache_dir"],
                          text_field=fields_of(options)))
        tell_unused(options, vocab, f"{path} 早先",
                    f"请删掉它重新预训练，或用 --vocab_trg_path 换一个新文件（如 {path.with_name('vocab_2.json')}）")
        return vocab
    if path.exists() and not made_here(options) and Vocab.load_vocab(path).hash != base["vocab_hash"]:
        raise UserError(f"词表 {path} 和起点模型的词表不同，编号对不上。请用训练起点模型时的词表，或去掉 --vocab_trg_path（模型自带词表）。", 4)
    vocab = Vocab.from_state(base["vocab"])
    tell_unused(options, vocab, "起点模型的词表", "请用这个 --vocab_data_path 重新预训练（换一个 --out_dir），再从新模型开始")
    return vocab


def tell_unused(options, vocab, whose, cure):
    """Say it when files were named for a vocabulary that is there already and has not seen them."""
    listed = ([value] if isinstance(value, str) else value or []
              for value in (options["vocab_data_path"], options["json_data_path"]))
    named, own = (set(file_names([path for path in paths if not is_hf(path)])) for paths in listed)
    unused = sorted(named - set(vocab.built_from or named))
    # a file beside the stage's own data: it was named, not filled in
    if unused and named - own and parallel.is_main():
        print(f"警告：--vocab_data_path 里的 {'、'.join(unused)} 没有用上：{whose}是由 {'、'.join(vocab.built_from)} 建成的，"
              f"它们的字词会被拆开。要让词表覆盖它们，{cure}。", file=sys.stderr)


# ---- models ----

def build_model(options, vocab, base=None):
    """A TinySeek for this configuration, with the base's weights when there is one."""
    resume.seed_everything(options["seed"])
    if base is None:
        return TinySeek(wanted_shape(options, vocab))
    model = TinySeek(fitting_shape(options, vocab, base))
    model.load_state_dict(base["weights"], strict=True)
    return model


def frozen_model(options, vocab, chain):
    """The base as a module without gradients, shaped by its file, trained with this run's dropout, alpha and
    checkpointing."""
    config = fitting_shape(options, vocab, chain[0])
    try:
        return build([{**chain[0], "config": config.to_dict()}, *chain[1:]])
    except ValueError as error:
        raise UserError(f"{options[BASE_KEY]} 和它的底座对不上：{error}", 4) from None


def put_on(model, adapter):
    """Attach what `adapter` describes to the model. UserError 2, in the user's words where a user can cause it."""
    try:
        attach(model, adapter)
    except ValueError as error:
        raise UserError(f"{explained(error)}。", 2) from None


REASONS = [
    (r"'(.*)' matches no projection; there are: (.*)", "模型里没有叫 {0} 的模块。lora_targets 可选：{1}"),
    (r"no projection is named; there are: (.*)", "没有写 lora_targets。可选：{0}"),
    (r"rank (\S+) must lie between 1 and (\d+),.*", "rank={0} 不行，所选部位的矩阵只允许 1 到 {1}"),
    (r"memory layers (.*) must be different numbers from 0 to (\d+)", "memory_layers={0} 不行，应是互不相同的层号，从 0 到 {1}"),
]


def explained(error):
    for pattern, chinese in REASONS:
        matched = re.fullmatch(pattern, str(error), re.S)
        if matched:
            return chinese.format(*matched.groups())
    return str(error)


def same_adapter(one, other):
    """Whether two adapters, as their files describe them, have the same tensors."""
    shapes = [{k: v for k, v in (adapter or {}).items() if k not in ("scale", "dropout")} for adapter in (one, other)]
    return shapes[0] == shapes[1]


# ---- shapes ----

def wanted_shape(options, vocab):
    try:
        return ModelConfig.from_dict({k: options[k] for k in MODEL_KEYS} | {"vocab_size": len(vocab)})
    # what depends on the vocabulary; the rest was refused earlier, in Chinese
    except ValueError as error:
        raise UserError(f"这样的模型做不出来：{error}", 2) from None


def fitting_shape(options, vocab, base):
    """The ModelConfig to go on with from `base`: its own shape where the user says nothing. UserError 4 where he asks
    for other tensors."""
    had, own = ModelConfig.from_dict(base["config"]), options.get("own_shape", MODEL_KEYS)
    positions = {"max_position": had.max_position or options["max_position"]}
    kept = shape_of(had) | {k: getattr(had, k) for k in STRETCH}
    wanted = wanted_shape({**options, **positions, **{k: v for k, v in kept.items() if k not in own}}, vocab)
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

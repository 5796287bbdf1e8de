"""An exported folder back into a payload, bit for bit; also after transformers has trained it further and saved it
again."""

from dataclasses import replace
from pathlib import Path

from chat_agent.exports.bases.folder import is_base, read_base
from chat_agent.exports.folder import read_json
from chat_agent.exports.hf.config import model_config
from chat_agent.exports.hf.tokenizer import vocab_from_tokenizer
from chat_agent.exports.hf.weights import SECOND_HEAD, from_hf, has_biases
from chat_agent.exports.source import check_numbers, check_shapes, expected, need
from tools.errors import UserError

FRESH = {"format": 1, "kind": "model", "stage": "SFT", "adapter": None, "base": None, "step": 0, "metrics": {},
         "run": {}}


def read_hf(folder):
    """-> payload of a checkpoint. UserError 2 no such folder, 3 files missing or damaged, 4 not a TinySeek or not one
    set."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"找不到文件夹 {folder}。--from hf 后面要写 --to hf 导出的文件夹。", 2)
    if is_base(folder):
        return read_base(folder)
    known = _remembered(folder / "tinyseek.json")
    second = _read(folder / "second_head.safetensors") if (folder / "second_head.safetensors").exists() else {}
    config = model_config(read_json(folder / "config.json"), known.get("config"), bool(second))
    vocab = vocab_from_tokenizer(read_json(folder / "tokenizer.json"), known.get("token_kind"), known.get("vocab_hash"))
    tensors = _weights(folder)
    if "config" not in known and config.position == "learned" and has_biases(tensors):
        config = replace(config, bias="all")            # a config.json of GPT-2 does not say whether they are zero
    found = from_hf(config, tensors, second.get(SECOND_HEAD))
    check_shapes(config, found, folder)
    weights = {name: found[name] for name in expected(config)}
    return FRESH | {k: known[k] for k in (*FRESH, "talk") if k in known} | {
        "config": known.get("config", config.to_dict()), "vocab_hash": vocab.hash, "vocab": vocab.state(),
        "weights": weights}


def _remembered(path):
    """What tinyseek.json says, {} without one. UserError 4 when it cannot be of a full model."""
    found = read_json(path) if path.exists() else {}
    right = all(type(found[k]) is type(v) for k, v in FRESH.items()
                if k in found) and isinstance(found.get("config", {}), dict)
    if not right or any(found.get(k, FRESH[k]) != FRESH[k] for k in ("format", "kind", "adapter", "base")):
        raise UserError(f"{path} 不是完整模型的记录。请重新导出，或删去它再试。", 4)
    return found


def _weights(folder):
    """All tensors of the model's own files; an index decides which those are."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return _read(folder / "model.safetensors")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
        raise UserError(f"{index} 不完整。请重新导出。", 3)
    found = {}
    for file in sorted(set(where.values())):
        found.update(_read(folder / file))
    if set(found) != set(where):
        raise UserError(f"{index} 与权重文件里的张量不符。请重新导出。", 3)
    return found


def _read(path):
    load_file = need("safetensors.torch", "读取导出的文件夹").load_file
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise UserError(f"找不到 {path}。请给出 --to hf 导出的完整文件夹。", 3) from None
    except Exception as error:      # safetensors has an exception class of its own for each release
        raise UserError(f"读不了 {path}（{type(error).__name__}）。请重新导出。", 3) from None
    for name, tensor in found.items():
        check_numbers(name, tensor, path)
    return found

"""A folder of other people's model as a checkpoint."""

import json
from functools import partial, reduce
from pathlib import Path

import torch

from chat_agent.exports.bases.shapes import base_config
from chat_agent.exports.bases.tensors import Tensors, wanted
from chat_agent.exports.folder import read_json
from chat_agent.exports.hf.weights import parts
from chat_agent.exports.parts import to_theirs
from chat_agent.exports.source import expected
from tools.errors import UserError
from tools.saving.later import Later
from tools.words.foreign import ForeignVocab

FRESH = {"format": 1, "kind": "model", "adapter": None, "base": None, "step": 0, "metrics": {}}
LONGEST = 2048          # positions that a conversation takes up where nobody asks for more


def is_base(folder):
    """Whether the folder is of others: ours has our own words in its tokenizer."""
    path = Path(folder) / "tinyseek.json"
    if path.exists():
        return read_json(path).get("token_kind") == "foreign"
    try:
        words = json.loads((Path(folder) / "tokenizer.json").read_bytes())["model"]["vocab"]
        first = words[0][0] if isinstance(words, list) else next((word for word, i in words.items() if i == 0), None)
        return first != "<|PAD|>"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return (Path(folder) / "config.json").exists()


def read_base(folder):
    """-> payload of a checkpoint, its weights tools.saving.later.Laters. UserError 2 no such folder, 3 files missing or
    damaged, 4 nothing that we compute."""
    folder = Path(folder)
    found = read_json(folder / "config.json")
    base_config(found)                                      # refused before anything large is looked at
    tensors = Tensors(folder)
    config = base_config(found, tensors.shapes)
    names = wanted(tensors, theirs(config))
    vocab = ForeignVocab.of_folder(folder)
    if len(vocab) > config.vocab_size:
        raise UserError(f"词表有 {len(vocab)} 项，模型只有 {config.vocab_size} 行，对不上。请下载完整的文件夹。", 4)
    known = read_json(folder / "tinyseek.json") if (folder / "tinyseek.json").exists() else {}
    longest = min(found.get("max_position_embeddings") or config.max_position or LONGEST, LONGEST)
    payload = FRESH | {"stage": "SFT" if vocab.talks else "Pre", "run": {"max_len": longest}}
    return payload | {k: known[k] for k in ("stage", "step", "metrics", "run", "talk") if k in known} | {
        "config": config.to_dict(), "vocab_hash": vocab.hash, "vocab": vocab.state(),
        "weights": _weights(config, tensors, names)}


def _weights(config, tensors, names):
    """Our weights as Laters, each read and turned when it is written. Only what decides whether the folder fits is read
    now."""
    weights, shapes = {}, expected(config)
    for part in parts(config):
        found = [names[name] for name in part.theirs]
        kind = reduce(torch.promote_types, (tensors.dtypes[name] for name in found))
        if not part.ours:                                   # nothing of ours: it must hold nothing
            part.backward(tensors.read(found))
        turned = _Turned(part, tensors, found)
        for place, name in enumerate(part.ours):
            weights[name] = Later(shapes[name], kind, partial(turned.taken, place))
    if config.tie_embedding:
        weights["fc1.weight"] = weights["embed.weight"]
        if "lm_head.weight" in names and not torch.equal(*tensors.read([names["lm_head.weight"]]),
                                                         weights["fc1.weight"].make()):
            raise UserError("config.json 说输出头与词嵌入共用，文件里却有另一个 lm_head.weight。请检查这个文件夹。", 4)
    return {name: weights[name] for name in shapes}


class _Turned:
    """Our tensors of a part: read and turned for the first that is taken, each let go when it is."""

    def __init__(self, part, tensors, found):
        self.part, self.tensors, self.found, self.made = part, tensors, found, {}

    def taken(self, place):
        if place not in self.made:
            self.made = dict(enumerate(self.part.backward(self.tensors.read(self.found))))
        return self.made.pop(place)


def theirs(config):
    """{name in transformers: shape} of a model of this configuration; nothing is allocated."""
    with torch.device("meta"):
        ours = {name: torch.empty(shape) for name, shape in expected(config).items()}
        if config.tie_embedding:
            del ours["fc1.weight"]
        return {name: tuple(t.shape) for name, t in to_theirs(parts(config), ours).items()}

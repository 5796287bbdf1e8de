"""A folder that transformers, vLLM and their kin load without any code of ours.

    config.json, model.safetensors (or several, with an index), tokenizer.json, tokenizer_config.json,
    generation_config.json, README.md, second_head.safetensors where the model has two heads, tinyseek.json: what only
    the way back needs
"""

import re

from tqdm import tqdm

from chat_agent.exports.bases.written import base_files
from chat_agent.exports.folder import whole_folder, write_json
from chat_agent.exports.hf.config import END, PAD, hf_config
from chat_agent.exports.hf.tokenizer import tokenizer_config, tokenizer_json
from chat_agent.exports.hf.weights import SECOND_HEAD, to_hf
from chat_agent.exports.hf.card import model_card
from chat_agent.exports.source import need, precision_of
from tools.checkpoint import acts_of

SHARD = 5 * 1000 ** 3       # bytes, as transformers splits
NAMES = re.compile(r"(config|tokenizer|tokenizer_config|generation_config|tinyseek|model\.safetensors\.index)\.json"
                   r"|(model(-\d{5}-of-\d{5})?|second_head)\.safetensors|README\.md")
REMEMBERED = ("format", "kind", "stage", "config", "vocab_hash", "adapter", "base", "step", "metrics", "run", "talk")


def write_hf(source, output, shard=SHARD):
    """Write the folder; returns the name of the class that loads it. UserError 2 when the model cannot be expressed."""
    save_file = need("safetensors.torch", "导出到 transformers ").save_file
    dtype = precision_of(source.weights)
    if source.vocab.dialogue:
        return _write_base(source, output, shard, dtype, save_file)
    config, size = hf_config(source.config, source.context, dtype), source.config.vocab_size
    tensors = to_hf(source.config, source.weights)
    with whole_folder(output, NAMES.fullmatch, "tinyseek.json") as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "tokenizer.json", tokenizer_json(source.vocab, size))
        write_json(folder / "tokenizer_config.json", tokenizer_config(source.vocab, size, source.context,
                                                                   acts_of([source.payload])))
        write_json(folder / "generation_config.json", {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD})
        known = {k: source.payload[k] for k in REMEMBERED if k in source.payload}
        write_json(folder / "tinyseek.json", {**known, "token_kind": source.vocab.token_kind})
        _write_weights(folder, tensors, shard, save_file)
        if SECOND_HEAD in source.weights:
            save_file({SECOND_HEAD: source.weights[SECOND_HEAD]}, folder / "second_head.safetensors",
                      {"format": "pt"})
        (folder / "README.md").write_text(model_card(source, config, dtype), encoding="utf-8", newline="\n")
    return config["architectures"][0]


def _write_base(source, output, shard, dtype, save_file):
    """The folder that a base came from, with the weights of now."""
    files, config = base_files(source.vocab, source.config, source.context, dtype)
    weights = {name: t for name, t in source.weights.items() if name != SECOND_HEAD}
    with whole_folder(output, lambda name: name in files or NAMES.fullmatch(name), "tinyseek.json") as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        known = {k: source.payload[k] for k in REMEMBERED if k in source.payload}
        write_json(folder / "tinyseek.json", {**known, "token_kind": source.vocab.token_kind})
        _write_weights(folder, to_hf(source.config, weights), shard, save_file)
    return config["architectures"][0]


def _write_weights(folder, tensors, shard, save_file):
    """One file or several, and always an index: some loaders read every .safetensors that no index leaves out."""
    groups = _groups(tensors, shard)
    where = {}
    for number, names in enumerate(tqdm(groups, desc="写权重", delay=2), 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        # Halves of one tensor are written from where they lie: no second copy of the weights.
        save_file({n: tensors[n].contiguous() for n in names}, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(names, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def _groups(tensors, shard):
    """Names in order, each list at most `shard` bytes unless a single tensor is larger."""
    groups, room = [[]], shard
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and groups[-1]:
            groups.append([])
            room = shard
        groups[-1].append(name)
        room -= size
    return groups

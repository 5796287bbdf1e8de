"""Files of our own: a plain .pkl, and the weights alone as .safetensors."""

import json
from pathlib import Path

from chat_agent.exports.folder import check_replace, whole_file
from chat_agent.exports.source import CASTS, need, source_of
from tools.checkpoint import cast_weights, read_checkpoint
from tools.errors import UserError
from tools.saving.archive import explain, write_torch
from tools.saving.later import Later, save_later


def write_pkl(payload, output, precision=None):
    """A full model as a checkpoint of the usual kind; returns its path. precision: f32, f16, bf16 or None = as it
    is."""
    path = _with_suffix(output, ".pkl")
    if path.exists():
        raise UserError(f"{path} 已存在，检查点从不覆盖。请用 --output 换一个名字。", 2)
    source = source_of(payload, path, precision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from error
    later = any(isinstance(t, Later) for t in source.weights.values())
    write_torch(path, payload | {"weights": source.weights}, *([save_later] if later else []))
    return path


def write_safetensors(model, output, precision=None):
    """The weights of one file under our own names, an adapter's too; what they are stands in the metadata. Returns the
    path."""
    save_file = need("safetensors.torch", "导出 safetensors ").save_file
    payload, path = read_checkpoint(model), _with_suffix(output, ".safetensors")
    weights = payload["weights"] if precision is None else cast_weights(payload["weights"], CASTS[precision])
    about = {"format": "pt", "vocab_hash": payload["vocab_hash"], "stage": payload["stage"],
             "config": json.dumps(payload["config"])}
    if payload["adapter"]:
        about["adapter"] = json.dumps(payload["adapter"])
    check_replace(path, b'"vocab_hash"', b'"__metadata__"')
    with whole_file(path) as temporary:
        # Tied weights share their storage, which this format does not know.
        save_file({name: t.clone() for name, t in weights.items()}, temporary, about)
    return path


def _with_suffix(output, suffix):
    path = Path(output)
    if path.is_dir() or path.suffix not in ("", suffix):
        raise UserError(f"--output 应是一个 {suffix} 文件，而不是 {output}。", 2)
    return path.with_suffix(suffix)

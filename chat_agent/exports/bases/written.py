"""What a folder of other people's model holds beside the weights, when such a model goes back."""

import json

from chat_agent.exports.bases.shapes import base_config
from chat_agent.exports.hf.config import hf_config
from tools.errors import UserError


def base_files(vocab, config, context, dtype):
    """({name: bytes} of the files, config.json as a dict): as they came, config.json with what has changed since."""
    files = {name: vocab.file(name) for name in vocab.files}
    found = json.loads(files["config.json"])
    if _same(config, found):
        return files, found
    written = hf_config(config, context, dtype)
    if found.get("model_type") == written["model_type"]:
        written = {**{k: v for k, v in found.items() if k not in ("rope_scaling", "rope_parameters")}, **{
            k: v for k, v in written.items() if not k.endswith("_token_id") and k != "max_position_embeddings"}}
    else:
        written |= {k: v for k, v in found.items() if k.endswith("_token_id") or k == "max_position_embeddings"}
    files["config.json"] = json.dumps(written, ensure_ascii=False, indent=2).encode()
    return files, written


def _same(config, found):
    """Whether the folder's own config.json says what `config` computes, to a program without code of anybody."""
    try:
        said = base_config(found)
    except UserError:
        return False
    kept = {"dropout": said.dropout, "alpha": said.alpha, "gradient_checkpointing": said.gradient_checkpointing}
    trained = {**config.to_dict(), **kept}
    return found.get("model_type") != "minimind" and trained == said.to_dict()

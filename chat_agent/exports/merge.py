"""An adapter and its base as one plain checkpoint."""

from model.build import build, merged
from tools.checkpoint import load_chain, read_checkpoint
from tools.errors import UserError


def merged_payload(path):
    """The payload of a full model that computes what the checkpoint at `path` and its base compute. A full model stays
    as it is.

    UserError: 2 what it adds is no change of weights, 3 a file is missing or damaged, 4 the parts do not fit.
    """
    top = read_checkpoint(path)
    if top["kind"] == "model":
        return top
    if top["kind"] == "gate":
        raise UserError(f"{path} 是挑选专家的门控，没有可以合并的底座。请分别合并、导出各个专家。", 2)
    chain = load_chain(path)
    base = chain[0]
    if any(payload["vocab_hash"] != base["vocab_hash"] for payload in chain):
        raise UserError(f"{path} 的词表和它的底座不是同一份，编号对不上。请用原来的文件，或重新训练。", 4)
    try:
        model = build(chain)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} 与它的底座对不上（{' '.join(str(error).split())[:160]}）。请用原来的文件，或重新训练。", 4) from None
    try:
        config, weights = merged(model)
    except ValueError:
        raise UserError(f"{path} 含有前缀或记忆，它们不是权重的改变，不能合并。请直接使用它，或导出它的底座。", 2) from None
    # the adapter brought it to talk
    taught = base["stage"] == "Pre" and top["run"].get("training_mode") != "pretraining"
    return top | {"kind": "model", "stage": "SFT" if taught else base["stage"], "config": config.to_dict(),
                  "weights": weights, "vocab": base["vocab"],
                  "adapter": None, "base": None}

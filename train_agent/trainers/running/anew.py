"""What a run says that begins anew where checkpoints of its stage lie: what is different, and how to go on all the same
(Chinese)."""

from model.config import MODEL_KEYS
from tools.checkpoint import read_checkpoint, weights_hash
from tools.config.keys import KEYS
from tools.errors import UserError
from tools.saving.run_folder import RunFolder
from tools.saving.start_files import moved_places, start_name
from train_agent.trainers.start_model import NOT_SHAPE, made_here, same_adapter

STARTS = ("起点模型", "底座", "专家")      # what a stage calls the file it starts from, in its identity


def told(changes):
    """[(key, old, new)] of Saver._changes in a few words. What a hash says is only that it changed."""
    return "、".join(f"{key} {shown(old)} → {shown(new)}" if key in KEYS else f"{key}变了"
                    for key, old, new in changes[:6])


def shown(value):
    """A value as it is typed on a command line."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def ways_on(stage, moved, found, changes):
    """Sentences, each with words that make the same command go on from what lies in the folder `moved` now.

    found: (payload, state or None) of the newest checkpoint, None where there is none; changes: [(key, old, new)].
    """
    if found is None:
        return []
    payload, state = found
    entry = next((e for e in reversed(RunFolder(moved, stage.label).entries()) if e["step"] == payload["step"]), None)
    if entry is None:
        return []
    newest, ways = moved / (entry["stem"] + ".pkl"), []
    back = going_back(stage.options, payload, changes) if state and changes else None
    if back:
        ways.append(f"要从原来的第 {state['step']} 步接着训：同一条命令，{back} ，加上 --resume {newest}")
    if weights_fit(stage, payload):
        ways.append(f"要在原来的权重上按现在的数据和设置训：同一条命令，加上 --init_from {newest}")
    return ways


def going_back(options, payload, changes):
    """How to undo the changes, None where the files for it are gone."""
    if all(key in KEYS and KEYS[key].change in ("ask", "raise") for key, _, _ in changes):
        return "加上 --allow_change"
    words = []
    for key, old, _ in changes:
        if key in KEYS:
            words.append(f"改回 --{key} {shown(old)} ")
        elif key in STARTS:
            place = old_start(options, payload)
            if place is None:
                return None
            words.append(f"改为 --pretraining_model_path {place} ")
        else:
            words.append(f"用回原来的{key}")
    return "，".join(words).rstrip()


def old_start(options, payload):
    """Where the model lies now that the run of `payload` started from, when it was moved to a backup folder; else
    None."""
    path = options.get("pretraining_model_path")
    digest = payload.get("starts", {}).get(start_name(path)) if path else None
    for group in moved_places(path) if digest else ():
        for place in group:
            try:
                if weights_hash(read_checkpoint(place)["weights"]) == digest:
                    return place
            except UserError:
                continue
    return None


def weights_fit(stage, payload):
    """Whether --init_from takes these weights: the same network or adapter, on the same base, with a vocabulary that
    may be used."""
    about, options = stage.about, stage.options
    if about["kind"] == "model":
        return ((made_here(options) or payload["vocab_hash"] == about["vocab_hash"])
                and all(payload["config"].get(k) == about["config"].get(k) for k in MODEL_KEYS if k not in NOT_SHAPE))
    if about["kind"] != "adapter":
        return False
    return same_adapter(about["adapter"], payload["adapter"]) and about["base"]["hash"] == payload["base"]["hash"]

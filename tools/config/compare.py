"""What a resume compares: the keys that matter, and what it makes of each change."""
import os
from collections import namedtuple

from tools.config.keys import KEYS
from tools.reading.held_out import SHARE

GROUPS = {"模型": "model", "运行": "run", "数据": "data", "训练长度": "schedule", "优化器": "optimizer", "学习率": "schedule",
          "起点": "run", "本阶段专有": "stage", "老师": "stage", "保存与评估": "run"}

# What a key meant before it was written into a run's configuration, where that is not today's default.
BEFORE_IT_WAS = {"pair_start": 0, "copy_start": False, "thinking": "off"}

# verdict: "ok" (always allowed), "ask" (only with --allow_change), "never" (needs a new run)
Change = namedtuple("Change", "key old new verdict")


def fingerprint(config):
    """{group: {key: value}} of a flat stage configuration, without the keys that may change freely."""
    groups = {}
    for name, key in KEYS.items():
        if name in config and key.change != "free":
            groups.setdefault(GROUPS[key.group], {})[name] = config[name]
    return groups


def compare(old, new):
    """The list of `Change`s between two fingerprints. A key that one of them lacks counts as its default, or as what it
    was."""
    before, after = _flat(old), _flat(new)
    before = {**before, **{name: after.get(name) for name in older(old) if name in after}}
    changes = []
    for name, key in KEYS.items():
        if name not in before and name not in after:
            continue
        was, now = before.get(name, key.default), after.get(name, key.default)
        if comparable(key, was) != comparable(key, now):
            changes.append(Change(name, was, now, _verdict(key, was, now)))
    return changes


def older(fingerprint):
    """{key: value} that a run begun before these keys existed goes on with, whatever the configuration says today."""
    known = _flat(fingerprint)
    return {name: value for name, value in BEFORE_IT_WAS.items() if name not in known}


def _flat(groups):
    return {name: value for group in groups.values() for name, value in group.items()}


def comparable(key, value):
    """Folders move; what a data file holds is its hash's business."""
    if key.kind in ("path", "paths") and value is not None:
        values = value if isinstance(value, list) else [value]
        return [os.path.basename(one.replace("\\", "/")) for one in values]
    if key.name == "eval_share":                # null: this share, unless the file is small
        return SHARE if value is None else value
    return value


def _verdict(key, was, now):
    if key.change == "raise":
        return "ok" if now is None or (was is not None and now >= was) else "ask"
    return {"free": "ok"}.get(key.change, key.change)

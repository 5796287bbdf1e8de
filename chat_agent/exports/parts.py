"""How the tensors of one program become those of another, and back: a list of Parts."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from tools.errors import UserError


class Part(NamedTuple):
    """Some of our tensors that together make some of theirs. forward and backward: list of tensors -> list of
    tensors."""

    ours: tuple
    theirs: tuple
    forward: Callable
    backward: Callable


def same(ours, theirs):
    return Part((ours,), (theirs,), list, list)


def gate_and_up(ours, gate, up, dim=-2):
    """Our one matrix (2 * hidden, d), gate first, as two."""
    return Part((ours,), (gate, up), lambda t: list(t[0].chunk(2, dim)), lambda t: [torch.cat(t, dim)])


def to_theirs(parts, weights):
    """{our name: tensor} -> {their name: tensor}. Views where possible. UserError 4 unless the names fit exactly."""
    _exactly(weights, [name for part in parts for name in part.ours])
    found = {}
    for part in parts:
        found.update(zip(part.theirs, part.forward([weights[name] for name in part.ours]), strict=True))
    return found


def to_ours(parts, tensors):
    """The exact inverse of `to_theirs`."""
    _exactly(tensors, [name for part in parts for name in part.theirs])
    found = {}
    for part in parts:
        found.update(zip(part.ours, part.backward([tensors[name] for name in part.theirs]), strict=True))
    return found


def _exactly(given, wanted):
    wrong = sorted(set(given) ^ set(wanted))
    if wrong:
        raise UserError(f"张量名字对不上：{wrong[0]} 等 {len(wrong)} 个缺失或多余，文件和它的配置不是一套。", 4)

"""torch.compile, for the parts that gain from it: norms and feed-forward layers, whose passes over memory it fuses.

Attention and routed experts stay as they are: their shapes change with every batch (documents, experts' loads), and
compiled anew each time they were slower (shape S, two CPU cores: 508 ms a step instead of 468, with experts 582 instead
of 509).
"""

import importlib.util
import os
import shutil

import torch

from model.layers import FeedForward, RMSNorm
from tools.errors import UserError

EARNS = 2000          # steps from which `auto` expects to get its warm-up back
BACKEND = "inductor"


def compile_parts(model, options, device, steps):
    """Do what the key `compile` says for a run of so many steps; no weight changes its name. Raises UserError 2 where
    no compiler is."""
    if options["compile"] == "yes" and not has_compiler(device):
        raise UserError("--compile yes 需要编译器：CPU 上要 C++ 编译器（g++ 或 clang++），显卡上要 triton、"
                        "C 编译器（gcc 或 clang）和计算能力 7.0 以上的卡。请安装，或用 --compile no。", 2)
    if options["compile"] == "no" or options["compile"] == "auto" and not pays(device, steps):
        return
    # widths, training and evaluation: once each
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for part in model.modules():
        if isinstance(part, (RMSNorm, FeedForward)):
            part.compile(backend=BACKEND, dynamic=True)        # the number of tokens may change


def pays(device, steps):
    """Whether `auto` compiles: not on a CPU, where 22 s of warm-up bought 3 % of a dense step and nothing with
    experts."""
    return device.type == "cuda" and steps >= EARNS and has_compiler(device)


def has_compiler(device):
    if device.type == "cpu":
        return any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++", "c++", "cl")))
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    # what Triton builds its launcher with
    return os.name == "nt" or any(map(shutil.which, (os.environ.get("CC") or "gcc", "clang", "cc")))

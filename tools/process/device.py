"""Which device computes. auto: a CUDA card, else Apple's MPS where it computes as the CPU does, else the CPU."""
import os
import sys
from functools import lru_cache

import torch

from tools.errors import UserError

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}      # of mixed_precision


def choose_device(name="auto"):
    """auto | cpu | cuda | cuda:0 | mps … -> torch.device. A device that is not there is a UserError 2, never a silent
    fallback.

    On CUDA, cuDNN's attention is switched off: it plans anew for every shape, and packed documents bring new ones with
    every batch.
    """
    # Torchrun's words
    alone, here = (int(os.environ.get(word, 1)) <= 1 for word in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if alone and _sound_mps() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"无法识别的设备 {name!r}。可用：auto、cpu、cuda、cuda:0、mps。") from None
    if device.index is not None and not here:
        raise UserError(f"--device {name} 会让这台机器上的几个进程挤在同一块卡上。请写 --device {device.type}，每个进程自动用自己的一块。")
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))      # one process, one GPU
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("指定了 --device cuda，但这台机器上的 PyTorch 看不到 CUDA 显卡。请改用 --device cpu，或安装带 CUDA 的 PyTorch。")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"没有编号为 {device.index} 的显卡，这台机器只有 {torch.cuda.device_count()} 块。")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    # Torch.xpu, and torch.npu where its package is imported
    others = getattr(torch, device.type, None)
    if device.type not in ("cpu", "cuda", "mps", "meta") and not (others and others.is_available()):
        raise UserError(f"指定了 --device {name}，但这台机器上的 PyTorch 用不了它。请改用 --device cpu。")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("指定了 --device mps，但这台机器不支持 MPS。请改用 --device cpu。")
    return device


@lru_cache(maxsize=1)
def _sound_mps():
    """Whether there is an MPS device that passes the self-check; one line where it does not."""
    if not torch.backends.mps.is_available():
        return False
    if computes_rightly("mps", "no") or computes_rightly("mps", "bf16"):
        return True
    print("MPS 的自检没有通过（结果和 CPU 不同），改用 CPU。一定要用它请写 --device mps。", file=sys.stderr)
    return False


def computes_rightly(device, precision):
    """Self-check on a small batch: product, softmax and the backward pass of an embedding agree with the CPU's
    float32."""
    try:
        found, wanted = trial(device, DTYPES[precision]), trial("cpu", torch.float32)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    near = 1e-3 if precision == "no" else 5e-2
    return all(bool((a - b).norm() <= near * b.norm()) for a, b in zip(found, wanted))       # False for NaN, too


def trial(device, dtype):
    """[probabilities (4, 16, 96), gradient of the embedding (96, 32), of the weight (32, 96)] of one batch, float32 on
    the CPU."""
    numbers = torch.Generator().manual_seed(0)
    table, weight = (torch.randn(shape, generator=numbers) for shape in ((96, 32), (32, 96)))
    ids = torch.randint(96, (4, 16), generator=numbers)
    table, weight = (one.to(device, dtype).requires_grad_() for one in (table, weight))
    ids = ids.to(device)
    chances = (torch.nn.functional.embedding(ids, table) @ weight * 32 ** -0.5).softmax(-1)
    chances.gather(-1, ids.roll(1, 1)[..., None]).log().mean().neg().backward()
    return [one.detach().float().cpu() for one in (chances, table.grad, weight.grad)]

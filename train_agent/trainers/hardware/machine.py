"""What this machine can do: device, threads, precision, memory allocator. Chosen once per run and kept for every resume."""

import ctypes
import os
import sys
import time

import torch

from tools.errors import UserError
from tools.reading.workers import processors


def choose_device(name):
    """auto | cpu | cuda | cuda:0 | mps -> torch.device. A device that is not there is an error, never a silent fallback."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"不认识的设备 {name!r}。可用：auto、cpu、cuda、cuda:0、mps。", 2) from None
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))      # one process, one GPU
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("指定了 --device cuda，但这台机器上的 PyTorch 看不到 CUDA 显卡。请改用 --device cpu，或安装带 CUDA 的 PyTorch。", 2)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"没有编号为 {device.index} 的显卡，这台机器只有 {torch.cuda.device_count()} 块。", 2)
    others = getattr(torch, device.type, None)                     # torch.xpu, and torch.npu where its package is imported
    if device.type not in ("cpu", "cuda", "mps", "meta") and not (others and others.is_available()):
        raise UserError(f"指定了 --device {name}，但这台机器上的 PyTorch 用不了它。请改用 --device cpu。", 2)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("指定了 --device mps，但这台机器不支持 MPS。请改用 --device cpu。", 2)
    return device


def choose_precision(wanted, device):
    """auto | no | fp16 | bf16 -> no | fp16 | bf16. On a CPU bf16 is taken where a measured product is faster."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if product_rate(torch.bfloat16) > 1.3 * product_rate(torch.float32) else "no"
    return "no"


def product_rate(dtype, size=(2048, 256, 512), seconds=0.05):
    """Measured FLOP/s of a matrix product of a training step's shape on the CPU."""
    rows, inner, columns = size
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return 2 * rows * inner * columns * count / (time.perf_counter() - start)


DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device, precision):
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "no")


def keep_large_blocks(keep=True):
    """Let glibc keep freed large blocks instead of returning them to the system; keep=False: give each back at once.

    Every training step allocates the same large tensors; fresh pages for each of them cost more than the arithmetic. Not so
    sharded weights: they come and go in sizes that never fit the gaps, and kept gaps double the memory (518 MB against 233, third step).
    Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
    if not keep:
        return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 20))
    # 32 MiB is the largest threshold that glibc accepts; larger blocks still come fresh.
    return all((libc.mallopt(M_MMAP_THRESHOLD, 32 << 20), libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1),
                libc.mallopt(M_TOP_PAD, 64 << 20)))


def peak_memory_mb():
    """Highest resident memory of this process in MiB, None where the platform does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def describe(device):
    """One flat dict about machine and versions, for logs and reports."""
    import platform
    return {"platform": platform.platform(), "python": platform.python_version(), "torch": str(torch.__version__),
            "device": str(device), "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "threads": torch.get_num_threads(), "cores": processors()}

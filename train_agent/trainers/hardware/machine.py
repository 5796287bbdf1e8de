"""What this machine can do: device, threads, precision, memory allocator. Chosen once per run and kept for every
resume."""

import ctypes
import sys
import time

import torch

from tools.process.device import DTYPES, choose_device, computes_rightly  # noqa: F401  (trainers ask here)
from tools.reading.workers import processors


def choose_precision(wanted, device):
    """auto | no | fp16 | bf16 -> no | fp16 | bf16. On a CPU bf16 is taken where a measured product is faster."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if product_rate(torch.bfloat16) > 1.3 * product_rate(torch.float32) else "no"
    return "bf16" if device.type == "mps" and not computes_rightly("mps", "no") else "no"


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


def autocast(device, precision):
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "no")


def keep_large_blocks(keep=True):
    """Let glibc keep freed large blocks instead of returning them to the system; keep=False: give each back at once.

    Every training step allocates the same large tensors; fresh pages for each of them cost more than the arithmetic.
    Not so sharded weights: they come and go in sizes that never fit the gaps, and kept gaps double the memory (518 MB
    against 233, third step). Does nothing where there is no glibc.
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

"""How much memory is there, on the device or in the machine, a container's limit included."""

import os
import sys

import torch


def memory_there(device):
    """Bytes that this process may still take on `device`; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    try:
        if sys.platform.startswith("linux"):
            with open("/proc/meminfo", encoding="ascii") as f:
                free = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
            return min([free] + cgroup_room())
        if hasattr(os, "sysconf"):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        import ctypes
        state = (ctypes.c_ulonglong * 8)(64)                            # MEMORYSTATUSEX: its length, then totals and free
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(state))
        return int(state[2])
    except (OSError, ValueError, StopIteration, AttributeError):
        return None


def cgroup_room():
    """What a container may still take, [] without a limit."""
    try:
        read = lambda name: open(f"/sys/fs/cgroup/{name}", encoding="ascii").read().strip()       # noqa: E731
        return [max(0, int(read("memory.max")) - int(read("memory.current")))]
    except (OSError, ValueError):
        return []

"""How much memory is there, a container's limit included, and how much a training step keeps."""

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
        # MEMORYSTATUSEX: its length, then totals and free
        state = (ctypes.c_ulonglong * 8)(64)
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


class SavedBytes:
    """Counts what autograd keeps for the backward pass: the activations. Parameters do not count; views count once."""

    def __init__(self, model):
        shards = (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())
        self.seen = {p.untyped_storage().data_ptr() for p in shards}
        self.total = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor):
        owner = tensor if tensor._base is None else tensor._base
        if isinstance(owner, torch.nn.Parameter):              # also a sharded one, put together for a moment
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor

    def __enter__(self):
        self.hooks.__enter__()

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

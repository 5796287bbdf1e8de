"""Several processes as one: torchrun (or accelerate launch) sets the variables, everything else asks here.

With one process every function is the identity, so the loop has no second branch.
"""

import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def start(device):
    """Join the process group that torchrun's variables describe; nothing to do for a single process."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def wrap(model, device):
    """The module whose forward pass synchronises gradients."""
    if world() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def without_sync(wrapped, last):
    """Gradients travel with the last micro-batch only."""
    return contextlib.nullcontext() if last or world() == 1 else wrapped.no_sync()


def summed(numbers, device):
    """A dict of numbers or tensors, each summed over all processes; shapes are kept."""
    if world() == 1:
        return numbers
    names = sorted(numbers)
    parts = [torch.as_tensor(numbers[n], dtype=torch.float64, device=device).flatten() for n in names]
    flat = torch.cat(parts)
    dist.all_reduce(flat)
    pieces = flat.split([len(p) for p in parts])
    return {n: piece.view(torch.as_tensor(numbers[n]).shape) for n, piece in zip(names, pieces)}


def any_of(flag, device):
    """True on every process when it is true on one."""
    return bool(float(summed({"flag": float(flag)}, device)["flag"]) > 0)


def barrier():
    if world() > 1:
        dist.barrier()

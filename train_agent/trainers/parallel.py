"""Several processes as one: torchrun (or accelerate launch) sets the variables, everything else asks here.

With one process every function is the identity, so the loop has no second branch.
"""

import atexit
import contextlib
import os
import sys
from datetime import timedelta
from inspect import signature

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tools.errors import UserError
from train_agent.trainers.hardware import sharding

# seconds without an answer after which another process counts as lost
TIMEOUT = float(os.environ.get("TINYSEEK_TIMEOUT", 600))
PATIENCE = timedelta(days=1)                               # for one that builds a token cache
LOST = 1                                                   # exit code of a process whose peer is gone
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NO_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in signature(
    DistributedDataParallel).parameters else "broadcast_buffers"
LOSS_WORDS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "process group")

_patient = None                                            # the process group that waits with PATIENCE
# one on the CPU that waits with TIMEOUT; None = the usual one
_prompt = None
# What ended a run whose peer is gone. Kept with its frames: what they hold (DDP, work under way) would be torn down
# while its threads wait for the one that is gone, which now and then aborts the process.
_lost = []


def start(device):
    """Join the process group that torchrun's variables describe; nothing to do for a single process. UserError 2
    without them."""
    global _patient, _prompt
    if int(os.environ.get("WORLD_SIZE", 1)) <= 1 or dist.is_initialized():
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(f"设置了 WORLD_SIZE，却没有 {'、'.join(missing)}。多进程训练请用 torchrun --nproc-per-node N 脚本.py 启动。")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"多进程训练只能用 CPU 或 CUDA 显卡，不能用 {device.type}。请加上 --device cpu，或不用 torchrun、只开一个进程。")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=TIMEOUT))
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    _prompt = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT)) if device.type == "cuda" else None
    atexit.register(leave)


def leave():
    """The end of the process: in good order, or at once where that would wait for one that is gone."""
    if _lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(LOST)
    stop()


def stop():
    global _patient, _prompt
    if dist.is_initialized():
        dist.destroy_process_group()
    _patient = _prompt = None


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def is_first_here():
    """Whether this is the first process of its machine."""
    return is_main() or int(os.environ.get("LOCAL_RANK", 0)) == 0


# ---- the model ----

def wrap(model, device, options, precision="no"):
    """The module whose backward pass brings the gradients of all processes together: DDP, or the model itself, sharded
    in place."""
    if world() == 1:
        return model
    if shards(model, options):
        return sharding.shard(model, device, keep_whole=options["fsdp_sharding"] == "SHARD_GRAD_OP",
                              precision=precision)
    # Buffers change in the same way on all (the routers' bias, by the summed load), so none is sent around; gradients
    # live in the buckets that travel, not beside them.
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None,
                                   gradient_as_bucket_view=True,
                                   **{NO_BUFFERS: False})


def shards(model, options):
    """Whether `wrap` will cut this model into one piece per process."""
    return world() > 1 and options["distributed"] == "fsdp" and options["fsdp_sharding"] != "NO_SHARD" and hasattr(
        model, "blocks")


def loss_factor(wrapped):
    """What a loss is multiplied with so that the gradients are summed over the processes: DDP divides by their
    number."""
    return world() if isinstance(wrapped, DistributedDataParallel) else 1


def without_sync(wrapped, last):
    """Gradients travel with the last micro-batch only."""
    if sharding.is_sharded(wrapped):
        wrapped.set_requires_gradient_sync(last)
    elif not last and isinstance(wrapped, DistributedDataParallel):
        return wrapped.no_sync()
    return contextlib.nullcontext()


def load_optimizer(optimizer, saved, device):
    """Put a state of whole tensors, which only the main process need have, into `optimizer` on every process, sharded
    as its weights are."""
    if world() == 1:
        return optimizer.load_state_dict(saved)
    state = from_main(lambda: sharding.mapped(saved, lambda t: t.to("meta") if t.ndim else t))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entry in state["state"].items():
        for name, value in entry.items():
            # one at a time: nobody ever holds all of it twice
            if isinstance(value, torch.Tensor) and value.is_meta:
                whole = saved["state"][number][name].to(device) if is_main() else torch.empty_like(value, device=device)
                dist.broadcast(whole, 0)
                entry[name] = sharding.like(whole, parameters[number])
    optimizer.load_state_dict(state)


# ---- numbers and values ----

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


def fetched(sums):
    """The same with floats for its single numbers, brought over together: a device is waited for once a step, not once
    for each. Not less often, as no step may be taken on numbers that are not finite."""
    single = {name: value for name, value in sums.items() if isinstance(value, torch.Tensor) and not value.ndim}
    return {**sums, **dict(zip(single, torch.stack([*single.values()]).tolist() if single else ()))}


def any_of(flag, device):
    """True on every process when it is true on one."""
    return bool(float(summed({"flag": float(flag)}, device)["flag"]) > 0)


def gathered(value, patient=False):
    """The values of all processes, in the order of their ranks, on every process. patient: one may work for hours
    before it answers."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value, group=_patient if patient else _prompt)
    return values


def barrier():
    if world() > 1:
        dist.barrier()


# ---- who works, who waits ----

def from_main(work):
    """What work() gives on the main process, on every process. A UserError there ends all of them; it is told once."""
    if world() == 1:
        return work()
    outcome = [_tried(work)] if is_main() else [None]
    dist.broadcast_object_list(outcome, 0)
    value, problem = outcome[0]
    _raise_first([problem])
    return value


def tensors_from_main(work):
    """{name: CPU tensor} that work() makes on the main process, on every process. The others wait as long as it
    takes."""
    if world() == 1:
        return work()
    made, problem = _tried(work) if is_main() else (None, None)
    told = gathered((made and {name: (t.shape, t.dtype) for name, t in made.items()}, problem), patient=True)
    _raise_first([problem for _, problem in told])
    found = made or {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in told[0][0].items()}
    for tensor in found.values():
        if tensor.numel():
            dist.broadcast(tensor, 0, group=_patient)
    return found


def main_first(work):
    """work() on every process: the main one first and alone, then the first one of each machine, then the others.

    Where the files are shared the later ones find what the first has made. A UserError of one ends all of them.
    """
    if world() == 1:
        return work()
    place = 0 if is_main() else 1 if is_first_here() else 2
    value = None
    for turn in range(3):
        mine, problem = _tried(work) if turn == place else (None, None)
        value = mine if turn == place else value
        _raise_first(gathered(problem, patient=True))
    return value


def agree(value, message):
    """Ends all processes with UserError 4 unless all of them have the same `value`."""
    values = gathered(value)
    if any(v != values[0] for v in values):
        _raise_first([(message, 4)])


def _tried(work):
    """(result, None), or (None, (message, code)) of a UserError."""
    try:
        return work(), None
    except UserError as error:
        return None, (str(error), error.code)


def _raise_first(problems):
    """problems: per rank (message, code) or None. The first is raised by its own process; the others leave in
    silence."""
    for owner, problem in enumerate(problems):
        if problem:
            if owner == rank():
                raise UserError(*problem)
            raise SystemExit(problem[1])


@contextlib.contextmanager
def watched():
    """Turns the loss of another process into two lines for the user."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            _lost.extend([error] if world() > 1 else [])
            raise UserError("读数据的子进程被杀掉了（常见原因是内存不足）。可以减小 num_workers 或 prefetch_factor；"
                            "重新运行同一条命令，会从最近的检查点接着训练。", LOST) from error
        if world() == 1 or not any(word in str(error).lower() for word in LOSS_WORDS):
            raise
        _lost.append(error)
        raise UserError(f"另一个训练进程中断了或 {TIMEOUT:g} 秒没有回应，第 {rank()} 号进程也停下。"
                        "请看它自己的报错；重新运行同一条命令，会从最近的检查点接着训练。", LOST) from error

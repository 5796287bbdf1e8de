"""FSDP2: weights, gradients and optimizer state cut into one piece per process, and put together again for files."""

import warnings

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from model.layers import LayerNorm, RMSNorm
from model.moe import Router
from tools.process.device import DTYPES

EXACT = (RMSNorm, LayerNorm, Router)      # of a block: they compute in float32 under autocast, whatever their input


def shard(model, device, keep_whole=False, precision="no"):
    """Shard `model` in place and onto `device`, block by block: no device ever holds all of it.

    keep_whole (SHARD_GRAD_OP): a block's weights stay whole until its backward pass. With fp16 or bf16 the matrices of
    the blocks travel in it, as autocast would cast them; norms, routers, embeddings and heads are used in float32, as
    everywhere else, so they travel in it. Gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    often = {"mesh": mesh, "reshard_after_forward": not keep_whole}
    exact = low = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision != "no":
        low = MixedPrecisionPolicy(DTYPES[precision], torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        settle_on(block, device)
        for bank in {memory.bank for memory in block.memories if not is_sharded(memory.bank)}:     # one for all layers
            fully_shard(bank, mesh=mesh, reshard_after_forward=False, mp_policy=exact)
        for memory in block.memories:
            fully_shard(memory, mp_policy=exact, **often)
        if low is not exact:
            parts = (*block.children(), *block.attention.children(), *block.mlp.children())
            fully_shard([part for part in parts if isinstance(part, EXACT)], mp_policy=exact, **often)
        fully_shard(block, mp_policy=low, **often)
    settle_on(model, device)
    # The heads stay whole: the backward pass begins with them.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=exact)
    # nobody changes the output in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        if isinstance(module, FSDPModule):                 # a plain sum: gloo knows no average
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    return model


def settle_on(module, device):
    """Move what is not sharded yet, and give every process what the main one has loaded."""
    module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            dist.broadcast(tensor.data, 0)


def is_sharded(module):
    return hasattr(module, "set_requires_gradient_sync") and hasattr(module, "reshard")


def settle(model):
    """Back to shards after a forward pass that no backward pass follows."""
    for module in filter(is_sharded, model.modules()):
        module.reshard()


def mapped(value, change):
    """Nested dicts and lists with `change` applied to every tensor."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped(v, change) for v in value]
    return value


def whole(tensor):
    """The full tensor behind a shard, on every process (all must ask), whose gradients are summed as those of a forward
    pass are; a plain tensor is itself."""
    return tensor.full_tensor(grad_placements=[Partial()]) if isinstance(tensor, DTensor) else tensor


def for_file(value, main=True):
    """Nested dicts and lists with whole tensors on the CPU where `main`, None elsewhere. All processes must ask."""
    def change(tensor):
        full = whole(tensor)
        return full.detach().cpu() if main else None
    return mapped(value, change)


def like(full, parameter):
    """A full tensor, cut as `parameter` is cut where it is a shard of the same shape."""
    if isinstance(parameter, DTensor) and full.shape == parameter.shape:
        return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return full

"""Norms, rotary positions, ALiBi slopes and the dense feed-forward layer: what attention and experts share."""

import math
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight with half the passes over memory that autograd would make."""

    @staticmethod
    def forward(ctx, x, weight, eps, dtype):
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, inverse = ctx.saved_tensors
        normed, grad = x * inverse, grad.to(x.dtype)
        product = grad * normed
        along = (product @ weight.to(x.dtype)).div_(x.shape[-1])[..., None]       # the part of the gradient along x
        grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        return (grad * weight).sub_(normed.mul_(along)).mul_(inverse), grad_weight, None, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 whatever comes in (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # elsewhere torch's own is one kernel each way
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return F.rms_norm(wide, self.weight.shape, self.weight, self.eps).to(compute_dtype(x))
        return _RMSNorm.apply(wide, self.weight, self.eps, compute_dtype(x))


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return F.layer_norm(wide, self.normalized_shape, self.weight, self.bias, self.eps).to(compute_dtype(x))


def make_norm(kind, width, eps):
    return RMSNorm(width, eps) if kind == "rms" else LayerNorm(width, eps=eps)


def compute_dtype(x):
    """The dtype that matrix products will run in here: autocast's where it is on, else the tensor's own."""
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def without_autocast(x):
    """A context in which products on x's device keep the dtype of what they read."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


LLAMA3 = 1, 4       # turns within the original length: fewer are stretched wholly, more not at all
YARN = 32, 1        # the same the other way round, counted in dimensions between


def rotary_tables(positions, width, theta, scaling=("none",)):
    """positions: (N,) integers -> cos, sin: (N, width / 2), float32. scaling: kind, factor, original length."""
    device = "cpu" if positions.device.type == "mps" else positions.device          # mps has no float64
    frequencies = theta ** (-torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    frequencies = scaled(frequencies, theta, *scaling)
    angles = positions.to(device)[:, None].double() * frequencies
    return angles.cos().float().to(positions.device), angles.sin().float().to(positions.device)


def scaled(frequencies, theta, kind, factor=1.0, original=None):
    """Rotary frequencies (width / 2,) for positions beyond the original length: all slower (linear), or only those that
    turn less than a few times within it (Llama 3.1, and YaRN, arXiv:2309.00071)."""
    if kind == "none":
        return frequencies
    if kind == "linear":
        return frequencies / factor
    if kind == "llama3":
        turns = frequencies * (original / (2 * math.pi))
        kept = ((turns - LLAMA3[0]) / (LLAMA3[1] - LLAMA3[0])).clamp(0, 1)
    else:
        width = 2 * len(frequencies)
        first, last = (width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in YARN)
        first, last = max(math.floor(first), 0), min(math.ceil(last), width - 1)
        places = torch.arange(len(frequencies), device=frequencies.device, dtype=frequencies.dtype)
        kept = 1 - ((places - first) / (last - first or 0.001)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def rotate(x, tables):
    """Rotate neighbouring pairs (x0, x1), DeepSeek-V2's interleaved form. x: (N, H, width)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():   # as complex numbers: far faster, rounded once
        pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).contiguous()
        turned = torch.view_as_complex(pairs) * torch.complex(*tables)[:, None, :]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    cos, sin = (t.to(x.dtype)[:, None, :] for t in tables)                       # (N, 1, width / 2)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def alibi_slopes(heads, device=None):
    """Slopes 2^(-8 i / H) for i = 1..H, any H (Press et al. 2021, arXiv:2108.12409)."""
    return torch.exp2(torch.arange(1, heads + 1, device=device) * (-8.0 / heads))


GATED = {"swiglu": F.silu, "geglu": F.gelu}
GATED_BACKWARD = {"swiglu": torch.ops.aten.silu_backward, "geglu": torch.ops.aten.gelu_backward}
PLAIN = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu,
         "relu2": lambda x: _SquaredReLU.apply(x) if torch.is_grad_enabled() else F.relu(x).square_()}


def is_gated(activation):
    return activation in GATED


def gated(x, activation):
    """x (..., 2h), gate first, then up -> act(gate) * up (..., h)."""
    gate, up = x.chunk(2, -1)
    return GATED[activation](gate) * up


def gated_backward(grad, x, activation):
    """Gradient (..., h) of `gated` -> gradient (..., 2h) of its input, in one buffer."""
    gate, up = x.chunk(2, -1)
    out = torch.empty_like(x)
    to_gate, to_up = out.chunk(2, -1)
    to_gate.copy_(GATED_BACKWARD[activation](grad * up, gate))
    torch.mul(grad, GATED[activation](gate), out=to_up)
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, activation):
        ctx.save_for_backward(x)
        ctx.activation = activation
        return gated(x, activation)

    @staticmethod
    def backward(ctx, grad):
        return gated_backward(grad, ctx.saved_tensors[0], ctx.activation), None


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2 (So et al. 2021, arXiv:2109.08668), keeping one tensor instead of two for the backward pass."""

    @staticmethod
    def forward(ctx, x):
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx, grad):
        return (grad * ctx.saved_tensors[0]).mul_(2)


def activate(x, activation):
    """x: (N, 2 * hidden) for gated kinds (gate first, then up), else (N, hidden) -> (N, hidden)."""
    if activation not in GATED:
        return PLAIN[activation](x)
    return _Gated.apply(x, activation) if torch.is_grad_enabled() else gated(x, activation)


class FeedForward(nn.Module):
    """down(act(up(x))); gated kinds keep gate and up in one matrix, gate first."""

    def __init__(self, width, hidden, activation, bias=False):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, hidden * (2 if is_gated(activation) else 1), bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x):
        return self.down(activate(self.up(x), self.activation))


def residual_std(config):
    """Projections back into the residual stream start smaller, so that its variance does not grow with depth
    (GPT-2)."""
    return config.init_std / math.sqrt(2 * config.n_layer)

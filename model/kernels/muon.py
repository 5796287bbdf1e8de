"""Muon: momentum, then the nearest orthogonal matrix as the step (Keller Jordan 2024), for matrices and for stacks of
experts.

Matrices of one shape go through the iteration together. Of a stack (E, m, n) every expert is a matrix of its own; each
step moves one in `turns` of them, `turns` times as far, from the momentum gathered meanwhile: an expert sees K / E of
the tokens, and the iteration for all of them would cost half as much as the step's forward and backward pass. The
iteration's coefficients are Polar Express's (Amsel et al. 2025, arXiv:2505.16932, table of the degree-5 polynomials),
the step's size is AdamW's (Moonlight, arXiv:2502.16982).
"""

import math

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

# For five iterations on singular values up to 1 / 1.02, each polynomial shrunk so that bfloat16's rounding cannot push
# one out of range.
COEFFICIENTS = ((8.156554524902461, -22.48329292557795, 15.878769915207462),
                (4.042929935166739, -2.808917465908714, 0.5000178451051316),
                (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
                (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
                (2.3465413258596377, -1.7097828382687081, 0.42323551169305323))
MARGIN = 1.02
AS_ADAMW = 0.2          # root mean square of an AdamW step


def orthogonal(matrices, iterations=5):
    """(k, m, n) -> (k, m, n) in bfloat16: each with its singular values brought close to 1."""
    x = matrices.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    x = x / (MARGIN * torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float32) + 1e-7).bfloat16()
    for a, b, c in COEFFICIENTS[:iterations]:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if wide else x


class Muon(torch.optim.Optimizer):
    """params: matrices (m, n) and stacks (E, m, n), whole or sharded along their first dimension. turns: see the
    module."""

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95, turns=4):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "turns": turns})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if not learning:
                continue
            directions = dict(zip(learning, self.directions(learning, group["momentum"])))
            for same in by_shape([p for p in learning if p.ndim == 2]):
                move(same, orthogonal(torch.stack([whole(directions[p]) for p in same])), group["lr"],
                     group["weight_decay"])
            for p in learning:
                if p.ndim == 3:
                    self.move_some(p, directions[p], group)

    def directions(self, learning, momentum):
        """The momentum of each, one step ahead (Nesterov)."""
        for p in learning:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        grads, buffers = [p.grad for p in learning], [self.state[p]["momentum_buffer"] for p in learning]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return torch._foreach_lerp(grads, buffers, momentum)

    def move_some(self, stack, direction, group):
        """Every `turns`-th expert of a stack makes the steps of `turns` steps."""
        turns = min(group["turns"], len(stack))
        turn = self.state[stack].get("turn", 0)
        self.state[stack]["turn"] = turn + 1
        first = (turn - first_here(stack)) % turns
        local, direction = (t.to_local() if isinstance(t, DTensor) else t for t in (stack, direction))
        if first < len(local):
            move([local[first::turns]], orthogonal(direction[first::turns])[None], group["lr"] * turns,
                 group["weight_decay"])


def by_shape(parameters):
    groups = {}
    for p in parameters:
        groups.setdefault(p.shape, []).append(p)
    return groups.values()


def move(parameters, steps, rate, decay):
    """parameters: list of (..., m, n); steps: the orthogonal matrices, stacked. Weight decay is decoupled."""
    size = rate * AS_ADAMW * math.sqrt(max(steps.shape[-2:]))
    for p, step in zip(parameters, steps):
        if isinstance(p, DTensor):
            step = distribute_tensor(step, p.device_mesh, p.placements, src_data_rank=None)
        p.mul_(1 - rate * decay).add_(step.to(p.dtype), alpha=-size)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_here(stack):
    """The number of the first expert that this process holds."""
    if not isinstance(stack, DTensor):
        return 0
    mesh = stack.device_mesh
    return mesh.get_local_rank() * -(-len(stack) // mesh.size())

"""Mixture of experts: a router, routed experts, and shared experts that see every token (DeepSeekMoE,
arXiv:2401.06066).

N tokens, E routed experts, K of them per token, d width of the model, h hidden width of one expert.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.kernels.expert_products import RoutedExperts, Slots, can_group, grouped_experts
from model.layers import FeedForward, activate, compute_dtype, is_gated


GATHER_UP_TO = 64     # assignments for which a GPU copies the experts' matrices


@dataclass
class Routing:
    """What one layer's router did with one batch. `load` (E,) counts assignments; the losses are scalars with a
    gradient."""

    loss: torch.Tensor
    z_loss: torch.Tensor
    load: torch.Tensor
    entropy: torch.Tensor


class Router(nn.Module):
    """Scores every expert in float32 and picks K. `softmax` is DeepSeek-V2's, `sigmoid` with a balancing bias
    DeepSeek-V3's.

    The bias decides which experts are picked and has no part in their weights; `balance` moves it after each training
    step.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.other_experts, config.d_model))
        self.weight_lora = nn.ModuleList()                                        # see model/lora.py
        if config.router == "sigmoid":
            self.register_buffer("bias", torch.zeros(config.other_experts))

    def forward(self, x):
        """x (N, d) -> weights (N, K), experts (N, K), probabilities (N, E), logits (N, E)."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x)
        if self.training and self.config.router_noise:
            logits = logits + torch.randn_like(logits) * self.config.router_noise
        weights, experts, scores = self.pick(logits)
        probabilities = scores if self.config.router == "softmax" else scores / scores.sum(-1, keepdim=True)
        return weights, experts, probabilities, logits

    def logits(self, x):
        """x (N, d) -> (N, E), float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        x = x.to(wide)
        logits = F.linear(x, self.weight.to(wide))
        for lora in self.weight_lora:
            logits = logits + lora(x)
        return logits

    @torch.no_grad()
    def balance(self, load):
        """load (E,): assignments of the last step. The bias of an expert with less than its share rises, the others'
        fall
        (Wang et al. 2024, arXiv:2408.15664)."""
        load = load.to(self.bias)
        self.bias += self.config.router_bias_rate * torch.sign(load.mean() - load)

    def pick(self, logits):
        """logits (N, E) -> weights (N, K), experts (N, K), scores (N, E)."""
        if self.config.router == "softmax":
            scores = logits.softmax(-1)
            weights, experts = scores.topk(self.config.keep, -1)                  # not renormalised, as in DeepSeek-V2
        else:
            scores = logits.sigmoid()
            experts = (scores + self.bias).topk(self.config.keep, -1).indices
            weights = scores.gather(-1, experts)
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.config.routed_scaling, experts, scores


def in_effect(weight, loras):
    """The weight with what each LowRank adds: a new adapter takes the way of the base, so that it changes no bit."""
    for lora in loras:
        weight = weight + lora.delta()
    return weight


class MoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = Router(c)
        self.up = nn.Parameter(torch.empty(c.other_experts, c.hidden * (2 if is_gated(c.activation) else 1), c.d_model))
        self.down = nn.Parameter(torch.empty(c.other_experts, c.d_model, c.hidden))
        self.up_lora, self.down_lora = nn.ModuleList(), nn.ModuleList()
        self.shared = FeedForward(c.d_model, c.hidden * c.shared_experts, c.activation)

    def forward(self, x, valid=None, sequences=1):
        """x (N, d); valid (N,) bool leaves padding out of the statistics -> (N, d), Routing."""
        weights, experts, probabilities, logits = self.router(x)
        mixed = self.shared(x) + self.routed(x, weights, experts)
        return mixed, self.statistics(experts, probabilities, logits, valid, sequences)

    def routed(self, x, weights, experts):
        """Sort the assignments by expert once, multiply contiguous slices, add the results back per token."""
        if x.device.type == "cpu" and is_gated(self.config.activation):
            slots = Slots.of(experts, self.config.other_experts)
            up, down = in_effect(self.up, self.up_lora), in_effect(self.down, self.down_lora)
            return RoutedExperts.apply(x, weights, slots, up, down, self.config.activation)
        order = experts.flatten().argsort(stable=True)                            # (N * K,) assignment -> place
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        gathered = _Dispatch.apply(x, order, back, experts.shape[1])              # (N * K, d), expert by expert
        numbers = torch.arange(self.config.other_experts, device=x.device)
        # bincount would ask the device for its largest
        counts = (experts.view(-1, 1) == numbers).sum(0)
        results = self.experts(gathered, counts)
        per_token = _Reorder.apply(results, back, order).view(*experts.shape, -1)  # (N, K, d)
        return (per_token * weights.to(per_token.dtype)[..., None]).sum(1)

    def experts(self, x, counts):
        """x (N * K, d) sorted by expert, counts (E,) -> (N * K, d)."""
        dtype = compute_dtype(x)
        if can_group(x.device, dtype, *self.down.shape[1:]):
            up, down = in_effect(self.up, self.up_lora).to(dtype), in_effect(self.down, self.down_lora).to(dtype)
            return grouped_experts(x.to(dtype), counts, up, down, self.config.activation)
        ups, downs = self.up.to(dtype).unbind(0), self.down.to(dtype).unbind(0)
        parts = x.split(counts.tolist())
        return torch.cat([self.expert(part, i, up, down) for i, (part, up, down) in enumerate(zip(parts, ups, downs))])

    @property
    def adapted(self):
        return bool(self.up_lora or self.down_lora)

    def decode(self, x, folded=None):
        """x (N, d) -> (N, d) without statistics; for few tokens only the chosen experts' weights are touched, and
        nothing is sorted.

        folded: what the caller has prepared of this block (see folded.py), or None.
        """
        weights, experts, _ = self.router.pick(self.router.logits(x))
        weights = weights.to(x.dtype)
        if folded and folded.mlp and folded.mlp.suits(x):
            return folded.mlp(x, weights, experts)
        if x.device.type != "cpu" and experts.numel() <= GATHER_UP_TO and not self.adapted:
            return self.shared(x) + self._gathered(x, weights, experts)
        return self.shared(x) + self.routed(x, weights, experts)

    def _gathered(self, x, weights, experts):
        """Copies of the chosen experts' matrices, and no word to the host: what a GPU likes. x (N, d), weights, experts
        (N, K) -> (N, d)."""
        chosen, keep = experts.flatten(), self.config.keep
        inner = torch.bmm(self.up[chosen], x.repeat_interleave(keep, 0)[..., None])[..., 0]
        mixed = torch.bmm(self.down[chosen], activate(inner, self.config.activation)[..., None])[..., 0]
        return torch.einsum("nkd,nk->nd", mixed.unflatten(0, (-1, keep)), weights)

    def expert(self, x, index, up=None, down=None):
        """One routed expert applied to x (N, d); up, down: its two matrices, where the caller has them at hand."""
        inner = F.linear(x, self.up[index] if up is None else up)
        for lora in self.up_lora:
            inner = inner + lora(x, index)
        inner = activate(inner, self.config.activation)
        mixed = F.linear(inner, self.down[index] if down is None else down)
        for lora in self.down_lora:
            mixed = mixed + lora(inner, index)
        return mixed

    def statistics(self, experts, probabilities, logits, valid, sequences):
        K = self.config.keep
        share = torch.ones(len(experts), device=experts.device) if valid is None else valid.float()
        total = share.sum().clamp_min(1)
        chosen = torch.zeros_like(probabilities).scatter_(1, experts, 1.0)        # (N, E), no gradient
        load = (chosen * share[:, None]).sum(0)
        if self.config.moe_loss == "aux":
            loss = sequence_balance(chosen, probabilities, share, sequences, K)
        else:
            loss = lexp(load / (total * K), (probabilities * share[:, None]).sum(0) / total)
        z = (torch.logsumexp(logits, -1).pow(2) * share).sum() / total
        with torch.no_grad():
            entropy = -(probabilities * probabilities.clamp_min(1e-20).log()).sum(-1)
            entropy = (entropy * share).sum() / total
        return Routing(loss, z, load.detach(), entropy)


def balance_routers(model, load):
    """After a training step: every router of `model` that learns and has a bias moves it. load (layers, E): assignments
    of the step."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router, own in zip(routers, load):
        if router.config.router == "sigmoid" and router.config.router_bias_rate and router.weight.requires_grad:
            router.balance(own)


def lexp(load_share, mean_probability):
    """E * sum_i f_i * P_i - 1: 0 when balanced, E / K - 1 when K experts take everything. Differentiable through P.

    load_share, mean_probability: (E,), each sums to 1.
    """
    return len(load_share) * (load_share.detach() * mean_probability).sum() - 1


def sequence_balance(chosen, probabilities, share, sequences, keep):
    """Sequence-wise auxiliary loss: mean over sequences of sum_i (count_i * E / (T * K)) * mean_t p_ti; 1 when
    uniform."""
    E = probabilities.shape[-1]
    chosen, probabilities, share = (t.unflatten(0, (sequences, -1)) for t in (chosen, probabilities, share))
    tokens = share.sum(1, keepdim=True).clamp_min(1)                              # (B, 1)
    counts = (chosen * share[..., None]).sum(1) * E / (tokens * keep)             # (B, E)
    means = (probabilities * share[..., None]).sum(1) / tokens
    used = (share.sum(1) > 0).float()
    return ((counts * means).sum(-1) * used).sum() / used.sum().clamp_min(1)


class _Dispatch(torch.autograd.Function):
    """x (N, d) -> (N * K, d) in expert order. The gradient is a gather and a sum over K instead of a slow
    scatter-add."""

    @staticmethod
    def forward(ctx, x, order, back, keep):
        ctx.save_for_backward(back)
        ctx.keep = keep
        return x.index_select(0, order // keep)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.index_select(0, ctx.saved_tensors[0])
        return grad.view(-1, ctx.keep, grad.shape[-1]).sum(1), None, None, None


class _Reorder(torch.autograd.Function):
    """A permutation of rows whose gradient is the inverse permutation."""

    @staticmethod
    def forward(ctx, x, take, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None

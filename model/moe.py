"""Mixture of experts: a router, routed experts, and shared experts that see every token (DeepSeekMoE,
arXiv:2401.06066).

N tokens, E routed experts, K of them per token, d width of the model, h hidden width of one expert.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.kernels.expert_products import experts_on_cpu, grouped_experts
from model.layers import FeedForward, activate, is_gated, without_autocast
from model.lora import in_effect


@dataclass
class Routing:
    """What one layer's router did with one batch of N tokens. `load` (E,) counts assignments; the losses are scalars
    with a gradient; experts, weights (N, K): whom each token went to, and how much of each it took."""

    loss: torch.Tensor
    z_loss: torch.Tensor
    load: torch.Tensor
    entropy: torch.Tensor
    experts: torch.Tensor = None
    weights: torch.Tensor = None


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
        with without_autocast(x):
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
        fall (Wang et al. 2024, arXiv:2408.15664)."""
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


def one_by_one(x, weights, experts, up, down, activation):
    """The sum over the K chosen experts of weight * down(act(up(x))), as one reads it; shapes as in expert_products."""
    mixed = torch.zeros_like(x)
    for e, (widen, narrow) in enumerate(zip(up.unbind(0), down.unbind(0))):
        tokens, choice = (experts == e).nonzero(as_tuple=True)
        made = F.linear(activate(F.linear(x[tokens], widen), activation), narrow)
        mixed = mixed.index_add(0, tokens, (made * weights[tokens, choice, None]).to(x.dtype))
    return mixed


class MoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = Router(c)
        self.up = nn.Parameter(torch.empty(c.other_experts, c.hidden * (2 if is_gated(c.activation) else 1), c.d_model))
        self.down = nn.Parameter(torch.empty(c.other_experts, c.d_model, c.hidden))
        self.up_lora, self.down_lora = nn.ModuleList(), nn.ModuleList()           # see model/lora.py
        self.shared = FeedForward(c.d_model, c.hidden * c.shared_experts, c.activation)

    def forward(self, x, valid=None, sequences=1):
        """x (N, d); valid (N,) bool leaves padding out of the statistics -> (N, d), Routing."""
        weights, experts, probabilities, logits = self.router(x)
        mixed = self.shared(x) + self.routed(x, weights, experts)
        routing = self.statistics(experts, probabilities, logits, valid, sequences)
        routing.experts, routing.weights = experts, weights.detach()
        return mixed, routing

    def routed(self, x, weights, experts):
        """x (N, d), weights, experts (N, K) -> (N, d)."""
        on_cpu = experts_on_cpu if is_gated(self.config.activation) else one_by_one
        product = on_cpu if x.device.type == "cpu" else grouped_experts
        up, down = in_effect(self.up, self.up_lora), in_effect(self.down, self.down_lora)
        return product(x, weights, experts, up, down, self.config.activation)

    @property
    def adapted(self):
        return bool(self.up_lora or self.down_lora)

    def decode(self, x, tables=None):
        """x (N, d) -> (N, d) without statistics; tables: ExpertTables that the caller has of this layer, or None."""
        weights, experts, _ = self.router.pick(self.router.logits(x))
        weights = weights.to(x.dtype)
        if tables and tables.suits(x):
            return tables(x, weights, experts)
        return self.shared(x) + self.routed(x, weights, experts)

    def statistics(self, experts, probabilities, logits, valid, sequences):
        share = torch.ones(len(experts), device=experts.device) if valid is None else valid.float()
        total = share.sum().clamp_min(1)
        chosen = torch.zeros_like(probabilities).scatter_(1, experts, 1.0)        # (N, E), no gradient
        load = (chosen * share[:, None]).sum(0)
        if self.config.moe_loss == "aux":
            loss = sequence_balance(chosen, probabilities, share, sequences, self.config.keep)
        else:
            mean = (probabilities * share[:, None]).sum(0) / total
            loss = load_balance_loss(load.detach() / (total * self.config.keep), mean) - 1
        with torch.no_grad():
            entropy = -(probabilities * probabilities.clamp_min(1e-20).log()).sum(-1)
            entropy = (entropy * share).sum() / total
        return Routing(loss, z_loss(logits, share), load.detach(), entropy)


def balance_routers(model, load):
    """After a training step: every router of `model` that learns and has a bias moves it. load (layers, E): assignments
    of the step."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router, assignments in zip(routers, load):
        if router.config.router == "sigmoid" and router.config.router_bias_rate and router.weight.requires_grad:
            router.balance(assignments)


# ---------------------------------------------------------------- losses of routers, of experts and of chapters


def load_balance_loss(load, mean_probability):
    """C * sum f_i * P_i: 1 when uniform, C / k when k experts take everything. load (C,) shares that sum to 1."""
    return len(load) * (load * mean_probability).sum()


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


def auxiliary_loss(mean_probability):
    """sum (P_i - 1 / C)^2 over the mean probabilities (C,), which carry a gradient; 0 when uniform."""
    return (mean_probability - 1 / len(mean_probability)).pow(2).sum()


def z_loss(logits, share=None):
    """mean(logsumexp(logits)^2) over logits (..., C), each counted `share` (...) times; None = once."""
    squares = torch.logsumexp(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1).pow(2)
    return squares.mean() if share is None else (squares * share).sum() / share.sum().clamp_min(1)


def compute_router_auxiliary_loss(router_losses, load_balance_coef=0.01, auxiliary_coef=0.0, z_loss_coef=0.001):
    """Mean over the layers that have losses of load_balance, auxiliary and z_loss, each times its coefficient.

    router_losses: one dict per layer, floats or tensors, any of the three keys missing; no layers -> 0.0.
    [{"load_balance": .01, "z_loss": .001}, {"load_balance": .02, "z_loss": .002}] -> 1.515e-4
    """
    coefficients = {"load_balance": load_balance_coef, "auxiliary": auxiliary_coef, "z_loss": z_loss_coef}
    layers = [layer for layer in router_losses if layer]
    if not layers:
        return 0.0
    return sum(coefficients[name] * value for layer in layers for name, value in layer.items()) / len(layers)

"""LoRA (Hu et al. 2021, arXiv:2106.09685): a frozen projection W plus a learned B A of low rank, W x + alpha / rank * B
(A x).

B starts at zero, so that a new adapter changes nothing; A starts as Normal(0, scale).
"""

import torch
from torch import nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """alpha / rank * B A for one matrix (out, in), or one for each of a stack of matrices (E, out, in)."""

    def __init__(self, weight, rank, alpha=None, scale=0.02, dropout=0.0):
        super().__init__()
        *stack, out, inner = weight.shape
        make = {"device": weight.device, "dtype": weight.dtype}
        self.a = nn.Parameter(torch.randn(*stack, rank, inner, **make) * scale)
        self.b = nn.Parameter(torch.zeros(*stack, out, rank, **make))
        self.factor = (rank if alpha is None else alpha) / rank
        self.dropout = nn.Dropout(dropout)
        self.watch = None         # a function that is shown every input x, while somebody wants to know them

    def forward(self, x):
        """x (N, in) -> (N, out), for one matrix; of a stack see `delta`."""
        if self.watch is not None:
            self.watch(x)
        return F.linear(F.linear(self.dropout(x), self.a), self.b) * self.factor

    def inward(self):
        """a as it counts for a weight. Dropout, in training, hits whole input columns."""
        if self.training and self.dropout.p:
            return self.a * self.dropout(torch.ones_like(self.a[..., :1, :]))
        return self.a

    def delta(self):
        """What has to be added to the weight: (out, in) or (E, out, in)."""
        return self.b @ self.inward() * self.factor


def in_effect(weight, loras):
    """The weight with what each LowRank adds: a new adapter takes the way of the base, so that it changes no bit."""
    for lora in loras:
        weight = weight + lora.delta()
    return weight


class LoraLinear(nn.Module):
    """Takes the place of the projection `base`, which may itself be a LoraLinear: adapters stack."""

    def __init__(self, base, **lora):
        super().__init__()
        self.base = base
        self.lora = LowRank(base.weight, **lora)

    def forward(self, x):
        return self.base(x) + self.lora(x)

    @property
    def weight(self):
        """The weight in effect, with a gradient: right for whoever multiplies by hand (the loss, absorbed attention, a
        merge)."""
        return self.base.weight + self.lora.delta()

    def low_rank(self):
        """The weight in effect, weight + b @ a, as (weight (out, in) below all adapters, a (R, in), b (out, R))."""
        weight, *below = self.base.low_rank() if isinstance(self.base, LoraLinear) else (self.base.weight,)
        own = self.lora.inward(), self.lora.b * self.lora.factor
        return weight, *(map(torch.cat, zip(below, own), (0, 1)) if below else own)          # adapters stack

    @property
    def bias(self):
        return self.base.bias


GROUPS = ("all", "attention", "mlp", "experts", "shared", "router", "heads")


def projections(model):
    """{dotted name: (module, attribute)} of all that LoRA can adapt, e.g. blocks.0.attention.q_up,
    blocks.1.mlp.experts.down."""
    places = {}
    for i, block in enumerate(model.blocks):
        for name, child in block.attention.named_children():
            if isinstance(child, (nn.Linear, LoraLinear)):
                places[f"blocks.{i}.attention.{name}"] = (block.attention, name)
        mlp, place = block.mlp, f"blocks.{i}.mlp"
        if hasattr(mlp, "router"):
            places[f"{place}.router"] = (mlp.router, "weight")
            places |= {f"{place}.experts.{name}": (mlp, name) for name in ("up", "down")}
            mlp = mlp.shared
        # without experts all tokens share the whole
        places |= {f"{place}.shared.{name}": (mlp, name) for name in ("up", "down")}
    if model.config.counted:
        return places | {"heads.fc1": (model.fc1, "weight")}
    return places | {f"heads.{name}": (model, name) for name in ("fc1", "fc2") if hasattr(model, name)}


def chosen(model, targets):
    """The projections that `targets` (one name or several) means: `all`, or any run of parts of a dotted name.

    "attention" is every projection of every attention, "q_up" one in each layer, "blocks.0" a whole layer, "heads" both
    heads. ValueError for a name that matches nothing; it lists the names there are.
    """
    every, picked = projections(model), {}
    for target in [targets] if isinstance(targets, str) else targets:
        fitting = {n: place for n, place in every.items() if target == "all" or f".{target}." in f".{n}."}
        if not fitting:
            raise ValueError(f"{target!r} matches no projection; there are: {', '.join(target_names(model))}")
        picked |= fitting
    if not picked:
        raise ValueError(f"no projection is named; there are: {', '.join(target_names(model))}")
    return {n: every[n] for n in every if n in picked}                            # in the model's order


def target_names(model):
    """The names for `targets` that this model has: groups first, then single projections."""
    every = [n.split(".") for n in projections(model)]
    parts = dict.fromkeys(part for name in every for part in name if not part.isdigit() and part != "blocks")
    return [g for g in GROUPS if g == "all" or g in parts] + [p for p in parts if p not in GROUPS]


def add_lora(model, rank=8, alpha=None, targets="attention", scale=0.02, dropout=0.0):
    """Put LoRA on the projections that `targets` means and leave every other weight's gradient as it is. ValueError if
    it cannot."""
    places = [(module, name, getattr(module, name)) for module, name in chosen(model, targets).values()]
    room = max(min(matrix(projection).shape[-2:]) for _, _, projection in places)
    if not 1 <= rank <= room:
        raise ValueError(f"rank {rank} must lie between 1 and {room}, the rank of the largest projection chosen")
    options = {"rank": rank, "alpha": alpha, "scale": scale, "dropout": dropout}
    for module, name, projection in places:
        if isinstance(projection, nn.Parameter):
            getattr(module, f"{name}_lora").append(LowRank(projection, **options))
        else:
            setattr(module, name, LoraLinear(projection, **options))
    return model


def matrix(projection):
    """The weight of a Linear or LoraLinear, or a bare parameter (the router, the stacked experts) as it is."""
    return projection if isinstance(projection, nn.Parameter) else projection.weight


def apply_lora(model, rank=8, alpha=None, targets="attention", scale=0.02, dropout=0.0):
    """Freeze `model`, put LoRA on the projections named by `targets` (see `chosen`) and return it. ValueError if it
    cannot.

    alpha: output factor alpha / rank, None = rank; scale: the spread that A starts with.
    """
    model.requires_grad_(False)
    return add_lora(model, rank, alpha, targets, scale, dropout)

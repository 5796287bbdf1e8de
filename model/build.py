"""From the dicts of a checkpoint chain (base first, adapters after) to a module, and back to plain weights."""

from dataclasses import replace
from operator import attrgetter

import torch
from torch import nn

from model.config import ModelConfig
from model.gate import Gate, GatedExperts
from model.lora import apply_lora, in_effect
from model.memory import apply_memory
from model.prefix import apply_prefix
from model.tiny_seek import TinySeek

APPLY = {"lora": apply_lora, "prefix": apply_prefix, "memory": apply_memory}


def build(chain, shared=None):
    """chain: payloads with "kind", "config", "weights", "adapter" -> TinySeek in eval mode, or GatedExperts for a gate.

    The model takes the tensors of the chain over instead of copying them. shared: a dict kept between calls; chains
    that begin with the same payload object then share one set of base tensors. ValueError when the parts do not fit
    together.
    """
    if chain[-1]["kind"] == "gate":
        return build_gate(chain[-1])
    if chain[0]["kind"] != "model":
        raise ValueError(f"a chain must begin with a model, not with {chain[0]['kind']!r}")
    if any((payload["adapter"] or {}).get("train_base") for payload in chain[1:]):
        # it will be overwritten
        base = {**chain[0], "weights": {n: t.clone() for n, t in chain[0]["weights"].items()}}
        model = build_base(base, {})
    else:
        model = build_base(chain[0], {} if shared is None else shared)
    for payload in chain[1:]:
        attach(model, payload["adapter"])
        load_adapter(model, payload["weights"])
    return model.eval().requires_grad_(False)


def build_base(payload, shared):
    """A TinySeek around the tensors of `payload`, brought to float32 where they are less; its Parameters are kept in
    `shared`.

    Models share Parameter objects, not just memory: so they stay one when they are moved to another device.
    """
    with torch.device("meta"):
        model = TinySeek(ModelConfig.from_dict(payload["config"]))
    if id(payload) not in shared:
        learned = dict(model.named_parameters(remove_duplicate=False))
        wide = {n: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
                for n, t in payload["weights"].items()}
        shared[id(payload)] = {n: nn.Parameter(t, requires_grad=False) if n in learned else t for n, t in wide.items()}
    _load(model, shared[id(payload)], assign=True)
    if model.config.tie_embedding:
        model.fc1.weight = model.embed.weight
    return model


def _load(model, weights, assign=False):
    try:
        model.load_state_dict(weights, strict=True, assign=assign)
    except RuntimeError as error:                              # torch's word for names or shapes that differ
        raise ValueError(str(error)) from None


def attach(model, adapter):
    """Put an untrained adapter on `model` as its description says; only its own tensors have gradients afterwards.
    ValueError."""
    adapter = dict(adapter or {})
    kind = adapter.pop("type", None)
    if kind not in APPLY:
        raise ValueError(f"unknown adapter {kind!r}, there are: {', '.join(APPLY)}")
    try:
        return APPLY[kind](model, **adapter)
    except TypeError as error:
        raise ValueError(str(error)) from None


def own_weights(model):
    """{name: tensor} of everything that learns: what the file of an adapter holds."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def load_adapter(model, weights):
    """Fill the adapter that was attached last with exactly its own tensors. ValueError for any other names or
    shapes."""
    learned = own_weights(model)
    wrong = sorted(set(learned) ^ set(weights))
    wrong += sorted(n for n in learned if n in weights and learned[n].shape != weights[n].shape)
    if wrong:
        raise ValueError(f"{len(wrong)} tensors of the adapter do not fit the model, {wrong[0]} first")
    for name, tensor in learned.items():
        tensor.copy_(weights[name])


def build_gate(payload):
    """payload: a gate's checkpoint with "experts", the list of its experts' chains -> GatedExperts. A shared base is
    held once."""
    shape = {k: v for k, v in payload["adapter"].items() if k in ("vocab_size", "hidden", "turn")}
    gate = Gate(experts=len(payload["experts"]), **shape)
    _load(gate, payload["weights"])
    shared = {}
    return GatedExperts(gate, [build(chain, shared) for chain in payload["experts"]]).eval().requires_grad_(False)


def merged(model):
    """A model with LoRA or role embeddings -> (ModelConfig, weights) of the plain TinySeek that computes the same.

    ValueError where that is impossible: prefixes and memories are no change of weights.
    """
    if any(block.memories or block.attention.prefixes for block in model.blocks):
        raise ValueError("a prefix or a memory cannot be folded into the weights")
    was_training = model.training
    model.eval()
    with torch.device("meta"):
        names = list(TinySeek(model.config).state_dict())
    with torch.no_grad():
        weights = {name: _effective(model, name).contiguous() for name in names}
    model.train(was_training)
    config = model.config
    if config.tie_embedding and not torch.equal(weights["fc1.weight"], weights["embed.weight"]):
        config = replace(config, tie_embedding=False)
    return config, weights


def _effective(model, name):
    """The weight of that name with everything that LoRA adds to it."""
    parent, attribute = name.rpartition(".")[::2]
    place = attrgetter(parent)(model)
    return in_effect(getattr(place, attribute).detach(), getattr(place, f"{attribute}_lora", ()))

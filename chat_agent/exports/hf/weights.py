"""Our tensor names and those that transformers writes for the same model, in both directions."""

import torch

from chat_agent.exports.families import HF, family
from chat_agent.exports.parts import Part, gate_and_up, same, to_ours, to_theirs
from tools.errors import UserError

GPT2_NAMES = ("attention.out", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")
SECOND_HEAD = "fc2.weight"      # no class of transformers has a second head; it travels in a file of its own


def to_hf(config, weights):
    """state_dict of a TinySeek -> {name in transformers: tensor}, the second head left out."""
    weights = {name: t for name, t in weights.items() if name != SECOND_HEAD}
    if config.tie_embedding:
        if not torch.equal(weights["fc1.weight"], weights["embed.weight"]):
            raise UserError("配置说输出头与词嵌入共用（tie_embedding），权重却不同。检查点有问题，请用别的检查点。", 4)
        del weights["fc1.weight"]
    return to_theirs(parts(config), weights)


def from_hf(config, tensors, second_head=None):
    """The inverse of `to_hf`; second_head (V, d) or None."""
    weights = to_ours(parts(config), tensors)
    if config.tie_embedding:
        weights["fc1.weight"] = weights["embed.weight"]
    if second_head is not None:
        weights[SECOND_HEAD] = second_head
    return weights


def parts(config):
    """The Parts of the whole model."""
    kind = family(config, HF)
    if kind == "gpt2":
        return _gpt2(config)
    attention = _mla if kind.startswith("deepseek") else grouped_attention
    found = [same("embed.weight", "model.embed_tokens.weight"), same("norm.weight", "model.norm.weight")]
    found += [] if config.tie_embedding else [same("fc1.weight", "lm_head.weight")]
    for i in range(config.n_layer):
        a, b = f"blocks.{i}.", f"model.layers.{i}."
        found += [same(f"{a}attention_norm.weight", f"{b}input_layernorm.weight"),
                  same(f"{a}mlp_norm.weight", f"{b}post_attention_layernorm.weight"),
                  *attention(config, f"{a}attention.", f"{b}self_attn."),
                  *(_experts(config, f"{a}mlp.", f"{b}mlp.") if config.is_moe_layer(i)
                    else _dense(f"{a}mlp.", f"{b}mlp.", config.bias == "all"))]
    return found


def _mla(config, a, b):
    names = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj", "kv_down": "kv_a_proj_with_mqa",
             "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "out": "o_proj"}
    return [same(f"{a}{ours}.weight", f"{b}{theirs}.weight") for ours, theirs in names.items()]


def _dense(a, b, biased=False):
    return [part for kind in ("weight", "bias")[:1 + biased] for part in (
        gate_and_up(f"{a}up.{kind}", f"{b}gate_proj.{kind}", f"{b}up_proj.{kind}", 0),
        same(f"{a}down.{kind}", f"{b}down_proj.{kind}"))]


def _experts(config, a, b):
    each = [f"{b}experts.{e}." for e in range(config.other_experts)]
    ups = tuple(f"{e}{kind}_proj.weight" for e in each for kind in ("gate", "up"))
    found = [same(f"{a}router.weight", f"{b}gate.weight"),
             Part((f"{a}up",), ups, lambda t: list(t[0].flatten(0, 1).chunk(len(ups))),
                  lambda t: [torch.stack(t).unflatten(0, (-1, 2)).flatten(1, 2)]),
             Part((f"{a}down",), tuple(f"{e}down_proj.weight" for e in each), lambda t: list(t[0].unbind()),
                  lambda t: [torch.stack(t)]),
             *_dense(f"{a}shared.", f"{b}shared_experts.")]
    if config.router == "sigmoid":
        found.append(same(f"{a}router.bias", f"{b}gate.e_score_correction_bias"))
    return found


def grouped_attention(config, a, b):
    """Llama rotates dimension i together with i + d_h / 2, we rotate neighbours: its rows are ours, evens before
    odds."""
    d = config.d_h

    def halves(t):
        return t.unflatten(0, (-1, d // 2, 2)).transpose(1, 2).flatten(0, 2)

    def neighbours(t):
        return t.unflatten(0, (-1, 2, d // 2)).transpose(1, 2).flatten(0, 2)

    def split(t):
        key, value = t[0].chunk(2)
        return [halves(key), value]

    def turned(ours, theirs):
        return Part((ours,), (theirs,), lambda t: [halves(t[0])], lambda t: [neighbours(t[0])])

    found = [same(f"{a}out.weight", f"{b}o_proj.weight")]
    found += [same(f"{a}out.bias", f"{b}o_proj.bias")] if config.bias == "all" else []
    for kind in ("weight", "bias")[:1 + (config.bias != "none")]:
        found += [turned(f"{a}q.{kind}", f"{b}q_proj.{kind}"),
                  Part((f"{a}kv.{kind}",), (f"{b}k_proj.{kind}", f"{b}v_proj.{kind}"), split,
                       lambda t: [torch.cat((neighbours(t[0]), t[1]))])]
    if config.qk_norm:
        found += [turned(f"{a}{name}_norm.weight", f"{b}{name}_norm.weight") for name in "qk"]
    return found


def _gpt2(config):
    """GPT-2 keeps its matrices transposed, q, k and v in one, and has biases: where ours has none they are zero."""
    d, wide, biased = config.d_model, config.dense_width, config.bias == "all"
    found = [same("embed.weight", "transformer.wte.weight"), same("place.weight", "transformer.wpe.weight"),
             same("norm.weight", "transformer.ln_f.weight"), same("norm.bias", "transformer.ln_f.bias")]
    found += [] if config.tie_embedding else [same("fc1.weight", "lm_head.weight")]
    for i in range(config.n_layer):
        a, b = f"blocks.{i}.", f"transformer.h.{i}."
        found += [same(f"{a}{ours}.{kind}", f"{b}{theirs}.{kind}")
                  for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")) for kind in ("weight", "bias")]
        found.append(Part((f"{a}attention.q.weight", f"{a}attention.kv.weight"), (f"{b}attn.c_attn.weight",),
                          lambda t: [torch.cat(t).t()], lambda t: [u.contiguous() for u in t[0].t().split([d, 2 * d])]))
        for ours, theirs in GPT2_NAMES:
            found.append(Part((f"{a}{ours}.weight",), (f"{b}{theirs}.weight",), _transposed, _transposed))
        if biased:
            found.append(Part((f"{a}attention.q.bias", f"{a}attention.kv.bias"), (f"{b}attn.c_attn.bias",),
                              lambda t: [torch.cat(t)], lambda t: list(t[0].split([d, 2 * d]))))
            found += [same(f"{a}{ours}.bias", f"{b}{theirs}.bias") for ours, theirs in GPT2_NAMES]
            continue
        for name, width in (("attn.c_attn", 3 * d), ("attn.c_proj", d), ("mlp.c_fc", wide), ("mlp.c_proj", d)):
            found.append(Part((), (f"{b}{name}.bias",), lambda t, width=width: [torch.zeros(width)], _no_bias))
    return found


def has_biases(tensors):
    """Whether a GPT-2 has a projection with a bias that is not zero."""
    return any(t.any() for name, t in tensors.items() if ".c_" in name and name.endswith(".bias"))


def _transposed(t):
    return [t[0].t().contiguous()]


def _no_bias(t):
    if t[0].any():
        raise UserError("这个 GPT-2 的偏置不是零，TinySeek 没有偏置，带不回来。", 4)
    return []

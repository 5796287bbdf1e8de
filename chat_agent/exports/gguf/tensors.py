"""Our tensor names and those of llama.cpp's architectures `deepseek2`, `llama` and `qwen3`, in both
directions."""

import torch

from chat_agent.exports.families import GGUF, family
from chat_agent.exports.hf.weights import SECOND_HEAD, grouped_attention
from chat_agent.exports.parts import Part, gate_and_up, same, to_theirs


def to_gguf(config, weights):
    """state_dict of a TinySeek -> {name in the GGUF: tensor}, the second head left out.

    A tied head is written out: not every reader of these architectures falls back on the embedding.
    """
    return to_theirs(parts(config), {name: t for name, t in weights.items() if name != SECOND_HEAD})


def parts(config):
    """The Parts of the whole model. llama.cpp turns neighbouring dimensions together, as we do: nothing is permuted,
    but for `qwen3`, where it turns those that transformers turns."""
    attention = {"llama": _gqa, "qwen3": _qwen3}.get(family(config, GGUF), _mla)
    found = [same("embed.weight", "token_embd.weight"), same("norm.weight", "output_norm.weight"),
             same("fc1.weight", "output.weight")]
    for i in range(config.n_layer):
        a, b = f"blocks.{i}.", f"blk.{i}."
        found += [same(f"{a}attention_norm.weight", f"{b}attn_norm.weight"),
                  same(f"{a}mlp_norm.weight", f"{b}ffn_norm.weight"),
                  *attention(config, f"{a}attention.", b),
                  *(_experts(config, f"{a}mlp.", b) if config.is_moe_layer(i) else _dense(f"{a}mlp.", b, ""))]
    return found


def _mla(config, a, b):
    names = {"q_down": "attn_q_a", "q_norm": "attn_q_a_norm", "q_up": "attn_q_b", "kv_down": "attn_kv_a_mqa",
             "kv_norm": "attn_kv_a_norm", "out": "attn_output"}
    heads = config.n_head

    def split(t):
        key, value = t[0].unflatten(0, (heads, 2, -1)).unbind(1)                  # (H, d_h, d_c) each
        return [key.transpose(1, 2), value]         # llama.cpp takes a query through attn_k_b straight into the latent

    def join(t):
        return [torch.stack((t[0].transpose(1, 2), t[1]), 1).flatten(0, 2)]

    return [*(same(f"{a}{ours}.weight", f"{b}{theirs}.weight") for ours, theirs in names.items()),
            Part((f"{a}kv_up.weight",), (f"{b}attn_k_b.weight", f"{b}attn_v_b.weight"), split, join)]


def _gqa(config, a, b):
    return [same(f"{a}q.weight", f"{b}attn_q.weight"), same(f"{a}out.weight", f"{b}attn_output.weight"),
            Part((f"{a}kv.weight",), (f"{b}attn_k.weight", f"{b}attn_v.weight"), lambda t: list(t[0].chunk(2)),
                 lambda t: [torch.cat(t)])]


def _qwen3(config, a, b):
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
    return [part._replace(theirs=tuple(f"{b}{names[name.split('.')[0]]}.weight" for name in part.theirs))
            for part in grouped_attention(config, a, "")]


def _dense(a, b, kind):
    return [gate_and_up(f"{a}up.weight", f"{b}ffn_gate{kind}.weight", f"{b}ffn_up{kind}.weight"),
            same(f"{a}down.weight", f"{b}ffn_down{kind}.weight")]


def _experts(config, a, b):
    found = [same(f"{a}router.weight", f"{b}ffn_gate_inp.weight"),
             gate_and_up(f"{a}up", f"{b}ffn_gate_exps.weight", f"{b}ffn_up_exps.weight"),      # (E, hidden, d) each
             same(f"{a}down", f"{b}ffn_down_exps.weight"), *_dense(f"{a}shared.", b, "_shexp")]
    if config.router == "sigmoid":
        found.append(same(f"{a}router.bias", f"{b}exp_probs_b.bias"))
    return found

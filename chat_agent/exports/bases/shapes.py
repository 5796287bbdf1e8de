"""Which ModelConfig a config.json of other people's means, or why there is none: the families as data."""

from dataclasses import fields
from typing import NamedTuple

from chat_agent.exports.hf.config import GPT2_ACTIVATIONS
from chat_agent.exports.hf.rope import read_rope
from model.config import ModelConfig
from tools.errors import UserError


class Family(NamedTuple):
    """missing: what transformers takes where config.json is silent; must: {key: values that we compute}, silence is the
    first; names: {key of config.json: key of ModelConfig}; gives: keys of ModelConfig that the family itself means."""

    missing: dict
    must: dict
    names: dict
    gives: dict


COMMON = {"vocab_size": "vocab_size", "tie_word_embeddings": "tie_embedding", "initializer_range": "init_std"}
DENSE = COMMON | {"hidden_size": "d_model", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                  "intermediate_size": "dense_hidden", "rms_norm_eps": "norm_eps"}
GROUPED = DENSE | {"num_key_value_heads": "n_kv_head", "head_dim": "head_dim"}
LATENT = DENSE | {"kv_lora_rank": "d_c", "q_lora_rank": "d_q", "qk_rope_head_dim": "d_r", "v_head_dim": "head_dim",
                  "moe_intermediate_size": "hidden", "n_routed_experts": "other_experts",
                  "n_shared_experts": "shared_experts", "num_experts_per_tok": "keep",
                  "routed_scaling_factor": "routed_scaling", "first_k_dense_replace": "n_dense_layer"}
SILENT = {"tie_word_embeddings": False, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "head_dim": None}
SILU, PLAIN = {"hidden_act": ("silu", "swish"), "pretraining_tp": (1, 0)}, {"use_moe": False, "use_fc2": False}
NO_BIAS = {"attention_bias": (False,), "mlp_bias": (False,)}
NO_WINDOW = {"use_sliding_window": (False,)}
LLAMA = Family(SILENT, SILU, GROUPED, PLAIN | {"attention": "gqa"})
DEEPSEEK = Family(SILENT, SILU | NO_BIAS | {
    "n_group": (1,), "topk_group": (1,), "moe_layer_freq": (1,), "rope_interleave": (True,)},
    LATENT, {"use_fc2": False})

FAMILIES = {
    "llama": LLAMA,
    "minimind": LLAMA._replace(missing=SILENT | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
                               must=SILU | NO_BIAS | {"use_moe": (False,), "inference_rope_scaling": (False,)}),
    "mistral": LLAMA._replace(must=SILU | NO_BIAS, names=GROUPED | {"sliding_window": "sliding_window"},
                              missing=SILENT | {"sliding_window": None}),
    "qwen2": LLAMA._replace(must=SILU | NO_WINDOW, gives=LLAMA.gives | {"bias": "qkv"}),
    "qwen3": LLAMA._replace(missing=SILENT | {"head_dim": 128}, must=SILU | NO_WINDOW | NO_BIAS,
                            gives=LLAMA.gives | {"qk_norm": True}),
    "deepseek_v2": DEEPSEEK._replace(must=DEEPSEEK.must | {"scoring_func": ("softmax",), "norm_topk_prob": (False,)}),
    "deepseek_v3": DEEPSEEK._replace(must=DEEPSEEK.must | {"scoring_func": ("sigmoid",), "norm_topk_prob": (True,)},
                                     gives=DEEPSEEK.gives | {"router": "sigmoid"}),
    "gpt2": Family(
        {"tie_word_embeddings": True, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "n_inner": None,
         "activation_function": "gelu_new"},
        {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
         "activation_function": tuple(GPT2_ACTIVATIONS)},
        COMMON | {"n_embd": "d_model", "n_layer": "n_layer", "n_head": "n_head", "n_inner": "dense_hidden",
                  "n_positions": "max_position", "layer_norm_epsilon": "norm_eps"},
        PLAIN | {"attention": "gqa", "position": "learned", "norm": "layer", "bias": "all"}),
}
KINDS = {field.name: field.type for field in fields(ModelConfig)}
NOT_ELSEWHERE = ("quantization_config",)            # changes every tensor


def base_config(found, names=()):
    """config.json as a dict -> ModelConfig. names: of the folder's tensors. UserError 4 names what we cannot
    compute."""
    kind = found.get("model_type")
    if kind not in FAMILIES:
        _refuse(f"model_type 是 {kind!r}，这里能读 {'、'.join(FAMILIES)} 和本项目导出的文件夹")
    family = FAMILIES[kind]
    for key, values in {**family.must, **dict.fromkeys(NOT_ELSEWHERE, (None,))}.items():
        if found.get(key, values[0]) not in (*values, None):
            _refuse(f"{key}={found[key]!r} 这里算不了")
    said = {**family.missing, **{k: v for k, v in found.items() if v is not None}}
    try:
        keys = {ours: _fitting(ours, theirs, said[theirs]) for theirs, ours in family.names.items()}
        _fitting("max_position", "max_position_embeddings", said.get("max_position_embeddings"))
        keys |= family.gives | (read_rope(said) if kind != "gpt2" else {})
        return ModelConfig.from_dict(_finished(keys, kind, said, names))
    except KeyError as error:
        _refuse(f"没有写 {error.args[0]}")
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        _refuse(f"内容不对（{error}）" if str(error).isascii() else str(error))


def _fitting(ours, theirs, value):
    """The value, when it is of the kind that the key of ModelConfig wants. ValueError."""
    kind = KINDS[ours]
    right = isinstance(value, kind if kind is not float else (int, float)) and (kind is bool) == isinstance(value, bool)
    if not right or isinstance(value, int) and value < 0:
        raise ValueError(f"{theirs}={value!r} 不对")
    return value


def _finished(keys, kind, said, names):
    """What follows from several keys at once."""
    if kind == "llama" and (said.get("attention_bias") or said.get("mlp_bias")):
        if said.get("attention_bias") != said.get("mlp_bias"):
            raise ValueError("attention_bias 和 mlp_bias 只有一个为真，这里算不了")
        keys["bias"] = "all"
    if kind == "minimind" and any(name.endswith("q_norm.weight") for name in names):
        keys["qk_norm"] = True
    if kind == "gpt2":
        keys["activation"] = GPT2_ACTIVATIONS[said["activation_function"]]
        keys["dense_hidden"] = keys["dense_hidden"] or 4 * keys["d_model"]
    if kind.startswith("deepseek"):
        if said["qk_nope_head_dim"] != said["v_head_dim"]:
            raise ValueError(f"qk_nope_head_dim={said['qk_nope_head_dim']} 和 v_head_dim={said['v_head_dim']} 不等，这里算不了")
        keys["use_moe"] = keys["n_dense_layer"] < keys["n_layer"]
    if keys.get("head_dim") == keys["d_model"] / keys["n_head"]:
        keys["head_dim"] = None
    return keys


def _refuse(reason):
    raise UserError(f"这个文件夹带不进来：config.json 的 {reason}。", 4)

"""config.json of an exported folder, and the way back."""

from chat_agent.exports.families import HF, dense_layers, family
from chat_agent.exports.hf.rope import read_rope, rope_keys
from model.config import ModelConfig
from tools.errors import UserError
from tools.vocab import RESERVED

CLASSES = {"deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM", "llama": "LlamaForCausalLM",
           "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
           "gpt2": "GPT2LMHeadModel"}
GPT2_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
END, PAD = RESERVED.index("<|im_end|>"), RESERVED.index("[PAD]")
# Says how a folder was written, not what the model computes: transformers may change these when it saves the folder
# again.
NOT_SHAPE = ("max_position_embeddings", "torch_dtype", "initializer_range", "use_cache", "rope_theta",
             "rope_parameters", "rope_scaling", "n_group", "topk_group")
OPTIONAL = ("moe_layer_freq", "scoring_func", "topk_method")


def hf_config(config, context, dtype):
    """ModelConfig -> dict. context: positions the model was trained for; dtype: "float32", "float16" or "bfloat16"."""
    kind = family(config, HF)
    shape = {"deepseek_v2": _deepseek_v2, "deepseek_v3": _deepseek_v3, "gpt2": _gpt2}.get(kind, _llama)(config, context)
    return {"architectures": [CLASSES[kind]], "model_type": kind, **shape, "vocab_size": config.vocab_size,
            "tie_word_embeddings": config.tie_embedding, "initializer_range": config.init_std, "use_cache": True,
            "bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD, "torch_dtype": dtype}


def _transformer(c, context):
    return {"hidden_size": c.d_model, "intermediate_size": c.dense_width, "num_hidden_layers": c.n_layer,
            "num_attention_heads": c.n_head, "hidden_act": "silu", "max_position_embeddings": context,
            "rms_norm_eps": c.norm_eps, "attention_bias": c.bias == "all", "attention_dropout": 0.0, **rope_keys(c)}


def _mla(c, context):
    return {**_transformer(c, context), "num_key_value_heads": c.n_head, "q_lora_rank": c.query_latent,
            "kv_lora_rank": c.d_c,
            "qk_nope_head_dim": c.d_h, "qk_rope_head_dim": c.d_r, "v_head_dim": c.d_h,
            "first_k_dense_replace": dense_layers(c), "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
            "n_routed_experts": c.other_experts, "n_shared_experts": c.shared_experts, "num_experts_per_tok": c.keep,
            "moe_intermediate_size": c.hidden, "routed_scaling_factor": c.routed_scaling}


def _deepseek_v2(c, context):
    return {**_mla(c, context), "mlp_bias": False, "topk_method": "greedy", "scoring_func": "softmax",
            "norm_topk_prob": False}


def _deepseek_v3(c, context):
    return {**_mla(c, context), "rope_interleave": True, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
            "norm_topk_prob": True, "num_nextn_predict_layers": 0}


def _llama(c, context):
    return {**_transformer(c, context), "num_key_value_heads": c.kv_heads, "head_dim": c.d_h,
            "mlp_bias": c.bias == "all",
            **({"sliding_window": c.sliding_window} if c.sliding_window else {})}


def _gpt2(c, context):
    return {"n_embd": c.d_model, "n_inner": c.dense_width, "n_layer": c.n_layer, "n_head": c.n_head,
            "n_positions": c.max_position,
            "activation_function": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[c.activation],
            "layer_norm_epsilon": c.norm_eps, "scale_attn_weights": True,
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def model_config(found, known=None, second_head=False):
    """config.json as a dict -> ModelConfig. known: the keys the folder's tinyseek.json remembers, where there is one.

    UserError 4 when the folder asks for anything a TinySeek does not compute.
    """
    kind = found.get("model_type")
    if kind not in CLASSES:
        raise UserError(f"config.json 的 model_type 是 {kind!r}，这里只能带回 {'、'.join(CLASSES)}。", 4)
    try:
        read = _read_gpt2(found) if kind == "gpt2" else _read_rope(found, kind)
        config = ModelConfig.from_dict(known or {**read, "use_fc2": second_head})
        _agree(found, hf_config(config, 0, ""))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json 不完整或不是 TinySeek 能表达的结构（{error}）。请使用本项目导出的文件夹。", 4) from None
    if config.use_fc2 != second_head:
        raise UserError("第二个预测头的文件 second_head.safetensors 与 tinyseek.json 的记录不符。请使用完整的导出文件夹。", 4)
    return config


def _read_gpt2(f):
    return {"vocab_size": f["vocab_size"], "n_layer": f["n_layer"], "n_head": f["n_head"], "d_model": f["n_embd"],
            "dense_hidden": f["n_inner"], "max_position": f["n_positions"], "norm_eps": f["layer_norm_epsilon"],
            "tie_embedding": f["tie_word_embeddings"], "init_std": f["initializer_range"], "attention": "gqa",
            "position": "learned",
            "norm": "layer", "activation": GPT2_ACTIVATIONS[f["activation_function"]], "use_moe": False}


def _read_rope(f, kind):
    keys = {"vocab_size": f["vocab_size"], "n_layer": f["num_hidden_layers"], "n_head": f["num_attention_heads"],
            "d_model": f["hidden_size"], "dense_hidden": f["intermediate_size"], "norm_eps": f["rms_norm_eps"],
            **read_rope(f), "tie_embedding": f["tie_word_embeddings"], "init_std": f["initializer_range"]}
    if not kind.startswith("deepseek"):
        bias = {"qwen2": "qkv"}.get(kind, "all" if f.get("attention_bias") else "none")
        return keys | {"attention": "gqa", "n_kv_head": f["num_key_value_heads"], "head_dim": f.get("head_dim"),
                       "use_moe": False, "bias": bias, "qk_norm": kind == "qwen3",
                       "sliding_window": f.get("sliding_window") if kind == "mistral" else None}
    dense = f["first_k_dense_replace"]
    keys["head_dim"] = None if f["v_head_dim"] * keys["n_head"] == keys["d_model"] else f["v_head_dim"]
    return keys | {"d_c": f["kv_lora_rank"], "d_q": f["q_lora_rank"], "d_r": f["qk_rope_head_dim"],
                   "hidden": f["moe_intermediate_size"], "other_experts": f["n_routed_experts"],
                   "shared_experts": f["n_shared_experts"], "keep": f["num_experts_per_tok"],
                   "routed_scaling": f["routed_scaling_factor"], "use_moe": dense < f["num_hidden_layers"],
                   "n_dense_layer": dense, "router": "sigmoid" if kind == "deepseek_v3" else "softmax"}


def _agree(found, wanted):
    """Every setting that decides what is computed must be as an export of this model writes it."""
    for key, value in wanted.items():
        if key not in NOT_SHAPE and found.get(key, value if key in OPTIONAL else None) != value:
            raise ValueError(f"{key}={found.get(key)!r}")
    if "rope_theta" in wanted and read_rope(found) != read_rope(wanted):
        raise ValueError("rope")
    if any(found.get(key) not in (None, 1) for key in ("n_group", "topk_group")):
        raise ValueError("n_group")

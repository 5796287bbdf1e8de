"""Which architecture of the ecosystem a model is, exactly; or why there is none."""

from tools.errors import UserError

HF, GGUF = "hf", "gguf"
LATENT_EPS = 1e-6       # transformers builds the norms of the MLA latents with it, whatever its configuration says
RETRAIN = "要导出，请用{}重新训练。"


def has_experts(config):
    return any(config.is_moe_layer(i) for i in range(config.n_layer))


def dense_layers(config):
    """How many of the first layers are dense."""
    return min(config.n_dense_layer, config.n_layer) if config.use_moe else config.n_layer


def family(config, target):
    """deepseek_v2, deepseek_v3, llama, mistral, qwen2, qwen3 or gpt2 for target hf or gguf. UserError 2 with the reason
    when nothing fits."""
    if config.sliding_window is not None and (config.attention, config.position, target) != ("gqa", "rope", HF):
        _refuse("滑动窗口（sliding_window）在目标格式的同类结构里没有", "sliding_window=null")
    if config.counted:
        _refuse("计数的 n 元组（counted）在目标格式的同类结构里没有", "counted=0")
    if target == GGUF and (config.rope_scaling != "none" or config.sharpness != 1):
        _refuse("拉长的旋转位置（rope_scaling）还不能写进 gguf", "rope_scaling=none", "可以改用 --to hf 导出。")
    if config.position == "learned":
        return _gpt2(config, target)
    if config.position != "rope":
        _refuse(f"位置编码 {config.position} 在目标格式的同类结构里没有", "position=rope")
    if config.activation != "swiglu":
        _refuse(f"激活 {config.activation} 在目标格式的同类结构里没有", "activation=swiglu")
    if config.norm != "rms":
        _refuse(f"norm={config.norm} 在目标格式的同类结构里没有", "norm=rms")
    if config.attention == "gqa":
        if has_experts(config):
            _refuse("GQA 加 MoE 没有等价的现成结构（Mixtral 会重新归一化路由权重，且没有共享专家）", "attention=mla 或 use_moe=false")
        return _grouped(config, target)
    return _deepseek(config, target)


# (bias, qk_norm, whether attention has a window): the architecture of dense grouped-query attention
GROUPED = {("none", False, False): "llama", ("all", False, False): "llama", ("none", False, True): "mistral",
           ("qkv", False, False): "qwen2", ("none", True, False): "qwen3"}


def _grouped(config, target):
    asked = config.bias, config.qk_norm, config.sliding_window is not None
    if asked not in GROUPED:
        _refuse(f"bias={asked[0]}、qk_norm={asked[1]}、sliding_window={config.sliding_window} 合在一起没有现成的结构",
                "bias=none、qk_norm=false、sliding_window=null 中的几项")
    if target == GGUF and (GROUPED[asked] not in ("llama", "qwen3") or config.bias != "none"):
        _refuse(f"这里还不会把 {GROUPED[asked]} 结构直接写成 gguf", "", "请先用 --to hf 导出，再用 llama.cpp 的 convert_hf_to_gguf.py 转换。")
    return GROUPED[asked]


def _deepseek(config, target):
    if config.d_r < 2:
        _refuse("MLA 没有旋转维度（d_r=0），DeepSeek 的现成实现必须有", "d_r≥2")
    if target == HF and config.norm_eps != LATENT_EPS:
        _refuse(f"norm_eps={config.norm_eps}，而 transformers 里 MLA 潜向量的归一化固定用 {LATENT_EPS}", f"norm_eps={LATENT_EPS}")
    if target == GGUF and config.n_layer in (26, 27):
        _refuse(f"llama.cpp 把 {config.n_layer} 层的 DeepSeek-V2 一律当作没有查询潜向量的 Lite 版，读不了本模型", "别的 n_layer")
    if not has_experts(config) or config.router == "softmax":
        return "deepseek_v2"
    if config.other_experts < 2:
        _refuse("DeepSeek-V3 的路由至少要 2 个路由专家", "other_experts≥2 或 router=softmax")
    return "deepseek_v3"


def _gpt2(config, target):
    if target == GGUF:
        _refuse("llama.cpp 的 GPT-2 用近似的 GELU，位置数也是固定的，得不到相同的结果", "position=rope 的结构", "可以改用 --to hf 导出。")
    wanted = {"attention": ("gqa",), "norm": ("layer",), "activation": ("gelu", "gelu_tanh"), "bias": ("none", "all"),
              "qk_norm": (False,), "head_dim": (None,)}
    wrong = [f"{k}={getattr(config, k)}" for k, v in wanted.items() if getattr(config, k) not in v]
    if config.kv_heads != config.n_head:
        wrong.append(f"n_kv_head={config.kv_heads}")
    if has_experts(config):
        wrong.append("use_moe=true")
    if wrong:
        _refuse(f"学习式位置编码只有 GPT-2 结构能表达，而这里 {'、'.join(wrong)}", "--preset gpt2 的结构（稠密、多头、LayerNorm、GELU）")
    return "gpt2"


def _refuse(reason, other, way=None):
    raise UserError(f"这个模型不能这样导出：{reason}。{way or RETRAIN.format(other)}", 2)

"""The one table of other ecosystems' names, so that their configurations load as they are.

A name is renamed, converted, or refused with the reason. Two names for one key with different values are an error.
"""
import os

from tools.config.keys import KEYS
from tools.config.values import TRUE_WORDS, FALSE_WORDS, show
from tools.errors import UserError

class Unless:
    """What a switch that is off says: only what the key is *not*. It acts where a lower layer had switched it on."""

    def __init__(self, on, off):
        self.on, self.off = frozenset(on), off

    def __eq__(self, other):
        return isinstance(other, Unless) and (self.on, self.off) == (other.on, other.off)

    __hash__ = None


def combine(old, new):
    """Two statements of one source about one key, as one. Raises ValueError where they contradict each other."""
    if isinstance(old, Unless) and isinstance(new, Unless):
        return Unless(old.on | new.on, new.off)
    if isinstance(old, Unless):
        old, new = new, old
    if (old in new.on) if isinstance(new, Unless) else (old != new):
        raise ValueError("two values for one key")
    return old


RENAMED = {
    # the network
    "hidden_size": "d_model", "n_embd": "d_model", "num_hidden_layers": "n_layer", "n_layers": "n_layer",
    "num_layers": "n_layer",
    "num_attention_heads": "n_head", "n_heads": "n_head", "num_heads": "n_head", "num_key_value_heads": "n_kv_head",
    "n_routed_experts": "other_experts", "n_shared_experts": "shared_experts", "num_experts_per_tok": "keep",
    "moe_intermediate_size": "hidden", "intermediate_size": "dense_hidden", "first_k_dense_replace": "n_dense_layer",
    "kv_lora_rank": "d_c", "q_lora_rank": "d_q", "qk_rope_head_dim": "d_r", "rope_theta": "ro_theta",
    "routed_scaling_factor": "routed_scaling", "scoring_func": "router", "rms_norm_eps": "norm_eps",
    "layer_norm_eps": "norm_eps",
    "max_position_embeddings": "max_position", "tie_word_embeddings": "tie_embedding", "initializer_range": "init_std",
    "pad_token_id": "pad_idx", "aux_loss_alpha": "alpha",
    # the training
    "gradient_accumulation_steps": "accumulation_steps", "grad_accum_steps": "accumulation_steps",
    "per_device_train_batch_size": "batch_size", "max_grad_norm": "max_norm", "grad_clip": "max_norm",
    "max_length": "max_len", "cutoff_len": "max_len", "model_max_length": "max_len", "max_seq_len": "max_len",
    "max_seq_length": "max_len", "seq_len": "max_len", "block_size": "max_len",
    "learning_rate": "init_lr", "lr": "init_lr", "lr_scheduler_type": "scheduler", "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps", "epochs": "max_epochs", "num_epochs": "max_epochs", "num_train_epochs": "max_epochs",
    "output_dir": "out_dir", "save_dir": "out_dir", "save_interval": "save_steps", "eval_interval": "eval_steps",
    "log_interval": "logging_steps", "print_frq": "logging_steps", "print_freq": "logging_steps",
    "dataloader_num_workers": "num_workers", "dataset_subset": "hf_subset", "dataset_split": "hf_split",
    "subset": "hf_subset",
    "split": "hf_split", "dataset": "json_data_path", "data_path": "json_data_path", "vocab_path": "vocab_trg_path",
    "run_name": "name",
    "distributed_strategy": "distributed", "fsdp_sharding_strategy": "fsdp_sharding",
    "lora_r": "rank", "lora_rank": "rank", "target_modules": "lora_targets", "router_z_loss_coef": "router_z_loss",
}


def _flag(value, name):
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in TRUE_WORDS + FALSE_WORDS:
        return value.strip().lower() in TRUE_WORDS
    raise UserError(f"配置 {name} 应为 true 或 false，而不是 {show(value)}。")


def _dataset_name(value, name, base):
    """A local file or folder stays a path; anything else is a name on the hub."""
    if value is None:
        return {}
    if not isinstance(value, str):
        raise UserError(f"配置 {name} 应为字符串，而不是 {show(value)}。")
    local = (value.startswith("hf:") or os.path.exists(os.path.join(base, value))
             or value.endswith((".jsonl", ".jsonl.gz", ".json", ".txt")))
    return {"json_data_path": value if local else "hf:" + value}


def _resume(value, name, base):
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"resume": "auto" if value else "none"}
    return {"resume": {"true": "auto", "false": "none"}.get(str(value).lower(), value)}


def _num_gpus(value, name, base):
    """How many processes there are is the launcher's business; a number that agrees with it does no harm."""
    if value is None or str(value) in ("1", os.environ.get("WORLD_SIZE", "1")):
        return {}
    raise UserError(f"配置 {name} 在这里没有意义：进程数由启动命令决定，请用 torchrun --nproc-per-node {value} 脚本.py …")


def _num_samples(value, name, base):
    return {"n_of_samples": value, "n_of_samplings": None if value in (None, "none", "null") else 1}


def _spoken(value, words):
    return words.get(value, value) if isinstance(value, str) else value


def _hidden_act(value, name, base):
    return {"activation": _spoken(value, {"silu": "swiglu", "swish": "swiglu", "gelu_new": "gelu_tanh",
                                           "gelu_pytorch_tanh": "gelu_tanh"})}


def _dtype(value, name, base):
    return {"mixed_precision": _spoken(value, {"bfloat16": "bf16", "float16": "fp16", "half": "fp16",
                                               "float32": "no", "float": "no", "fp32": "no"})}


def _report_to(value, name, base):
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else "none" if not value else value
    return {"tracker": value}


def _base_model(value, name, base):
    """A checkpoint, or a folder in the shape of transformers; names on a hub are not fetched."""
    local = value is None or isinstance(value, str) and (
        value.endswith(".pkl") or os.path.exists(os.path.join(base, os.path.expanduser(value))))
    if not local:
        raise UserError(f"配置 {name} 应为本机的 .pkl 或模型文件夹，而这里没有 {show(value)}。请先把它下载到本机，再写文件夹的路径。")
    return {"pretraining_model_path": value}


# name -> (key, its value when on, its value when off while it was on)
SWITCHES = {
    "use_alibi": ("position", "alibi", "rope"), "use_geglu": ("activation", "geglu", "swiglu"),
    "log_to_wandb": ("tracker", "wandb", "none"), "use_wandb": ("tracker", "wandb", "none"),
    "use_swanlab": ("tracker", "swanlab", "none"),
    "fp16": ("mixed_precision", "fp16", "no"), "bf16": ("mixed_precision", "bf16", "no"),
}

# name -> (the key it speaks about, function of value, label, folder -> {key: value})
CONVERTED = {
    "dataset_name": ("json_data_path", _dataset_name), "resume_from_checkpoint": ("resume", _resume),
    "num_gpus": (None, _num_gpus), "num_samples": ("n_of_samples", _num_samples),
    "hidden_act": ("activation", _hidden_act),
    "dtype": ("mixed_precision", _dtype), "torch_dtype": ("mixed_precision", _dtype),
    "report_to": ("tracker", _report_to),
    **dict.fromkeys(("base_model_name", "model_name", "model_name_or_path"), ("pretraining_model_path", _base_model)),
}

_AUTOMATIC = "注意力会自动选用最快的实现"
_LAUNCHER = "进程由启动命令决定，请用 torchrun"
_DEVICE, _SMALL = "请写 device，如 cpu、cuda:0、mps", "训练不量化；要小的文件请导出 gguf：chat_agent/export.py --to gguf --precision q8_0"
REFUSED = {
    "plan": "多机的估算去掉了，请用 --dry_run 在一张卡上实测",
    "shuffle": "数据总是按 seed 打乱", "drop_last": "最后不满的一批也会用上", "warmup_ratio": "请写 warmup_steps",
    "n_of_experts": "请写 other_experts 和 shared_experts",
    "norm_topk_prob": "选中专家的权重不再归一化，请用 routed_scaling", "capacity_factor": "专家没有容量上限，不丢词元",
    "flash_attn": _AUTOMATIC, "use_flash_attention": _AUTOMATIC, "attn_implementation": _AUTOMATIC,
    "num_processes": _LAUNCHER, "num_nodes": _LAUNCHER, "world_size": _LAUNCHER, "local_rank": _LAUNCHER,
    "ddp": _LAUNCHER,
    "deepspeed": "请用 distributed: fsdp", "use_fsdp": "请写 distributed: fsdp",
    "trust_remote_code": "外来的代码从不运行，去掉它",
    "tokenizer": "词表由本项目建立，请用 vocab_trg_path", "tokenizer_name": "词表由本项目建立，请用 vocab_trg_path",
    "bos_token_id": "特殊符号的编号是固定的", "eos_token_id": "特殊符号的编号是固定的",
    "per_device_eval_batch_size": "评估与训练用同样的批", "eval_strategy": "请写 eval_steps",
    "evaluation_strategy": "请写 eval_steps", "save_strategy": "请写 save_steps",
    "push_to_hub": "本项目不上传任何东西", "template": "对话只有一种写法，不用选", "do_train": "运行训练脚本就会训练",
    "finetuning_type": "请运行对应的脚本，如 train_agent/lora_train.py", "model_type": "请用 preset 或模型的各个键",
    "from_weight": "起点模型请写 pretraining_model_path，聊天请写 --model", "save_weight": "请用 name 给这次训练起名",
    "do_sample": "随机的程度由 chat_agent/chat.py 的 --temperature 决定，0 = 不随机", "num_beams": "没有束搜索",
    "no_cuda": _DEVICE, "use_cpu": _DEVICE, "device_map": _DEVICE, "gpu": _DEVICE, "gpus": _DEVICE,
    "load_in_8bit": _SMALL, "load_in_4bit": _SMALL, "quantization": _SMALL,
}
# Words for generation, on the command line only: our own option, or what to do instead.
GENERATION = {
    "temp": "--temperature", "repeat_penalty": "--repetition_penalty", "no_repeat_ngram_size": "--no_repeat_ngram",
    "max_tokens": "--max_new_tokens", "max_completion_tokens": "--max_new_tokens", "num_predict": "--max_new_tokens",
    "n_predict": "--max_new_tokens", "max_gen_len": "--max_new_tokens", "stop_words": "--stop",
    "stop_sequences": "--stop",
    "stop_strings": "--stop", "system_prompt": "--system", "num_ctx": "--context", "ctx_size": "--context",
    "n_ctx": "--context",
    "context_length": "--context", "history_cnt": "--context", "model_path": "--model", "ckpt": "--model",
    "checkpoint": "--model",
    "checkpoint_path": "--model", "load_from": "--model", "adapter_name_or_path": "--model", "lora_path": "--model",
    "query": "--prompt",
    "beam_size": "这里没有束搜索，要确定的回答请用 --temperature 0", "length_penalty": "这里没有束搜索",
    "num_return_sequences": "一次只答一遍，要几个回答请换 --seed 再问", "typical_p": "请用 --top_p 或 --min_p",
    "stream": "回答总是边写边显示", "streaming": "回答总是边写边显示",
}
MEANINGFUL_NAMES = (*RENAMED, *SWITCHES, *CONVERTED)
FOREIGN_NAMES = (*MEANINGFUL_NAMES, *REFUSED)


def key_behind(name):
    """The key that a name of any ecosystem speaks about, or None."""
    if name in SWITCHES or name in CONVERTED:
        return {**SWITCHES, **CONVERTED}[name][0]
    name = RENAMED.get(name, name)
    return name if name in KEYS else None


def translate(name, value, base=".", label=None):
    """{our key: value} for one name of any ecosystem; {} where it asks for nothing; None for an unknown name.

    `base`: the folder that relative paths count from. A value may be an `Unless`.
    Raises UserError (2) for a name without a meaning here, with the reason.
    """
    label = label or name
    if name in KEYS:
        return {name: value}
    if name in RENAMED:
        return {RENAMED[name]: value}
    if name in SWITCHES:
        key, on, off = SWITCHES[name]
        return {key: on if _flag(value, label) else Unless([on], off)}
    if name in CONVERTED:
        return CONVERTED[name][1](value, label, base)
    if name in REFUSED:
        raise UserError(f"配置 {label} 在这里没有意义：{REFUSED[name]}。")
    return None

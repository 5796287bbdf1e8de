"""The one table of configuration keys: name, kind, default, range or choices, meaning.

Everything else (the manager, the command line, `--help`, the rules of a resume) reads this table; a new option of the
toolkit is one new line here.

kind     int float bool str choice; path paths (one or several, patterns and `hf:name` allowed); strings ints (lists)
scope    "model": the network's shape, flat at the top; "run": flat at the top; "stage": one value per stage section
change   what a resume makes of another value: "never", "ask" (only with --allow_change), "raise" (raising is free),
"free"
"""
from collections import namedtuple

STAGES = ("pre", "sft", "lora", "prefix", "memory", "gate", "dpo")
STAGE_TITLES = {"pre": "预训练", "sft": "指令微调", "lora": "LoRA 微调", "prefix": "前缀微调", "memory": "记忆适配器",
                "gate": "专家选择门", "dpo": "偏好对齐"}

Key = namedtuple("Key", "name kind default help scope group change null choices low high above stages")


def _key(name, kind, default, text, *, null=False, choices=None, low=None, high=None, above=None, stages=STAGES,
         scope=None, group=None, change=None):
    return Key(name, kind, default, text, scope, group, change, null or default is None, choices, low, high, above, stages)


def _block(scope, group, change, *keys):
    return [key._replace(scope=scope, group=group, change=key.change or change)
            if key.change is None else key._replace(scope=scope, group=group) for key in keys]


def _with(change, key):
    return key._replace(change=change)


_MODEL = _block(
    "model", "模型", "never",
    _key("vocab_size", "int", 5000, "词表大小（含 272 个保留与字节编号）", low=272),
    _key("n_layer", "int", 4, "层数", low=1),
    _key("pad_idx", "int", 0, "填充符的编号，固定为 0", low=0, high=0),
    _key("n_head", "int", 6, "注意力头数，须整除 d_model", low=1),
    _key("d_model", "int", 192, "宽度", low=1),
    _key("d_c", "int", 48, "键值潜向量的宽度（MLA）", low=1),
    _key("d_q", "int", None, "查询潜向量的宽度，null = 2×d_c", low=1),
    _key("d_r", "int", 16, "带旋转位置的维数，须为偶数（MLA）", low=2),
    _key("hidden", "int", 192, "一个专家的隐藏宽度", low=1),
    _key("other_experts", "int", 8, "路由专家的个数", low=1),
    _key("shared_experts", "int", 1, "共享专家的个数，至少 1", low=0),
    _key("keep", "int", 2, "每个 token 选用的路由专家数", low=1),
    _key("ro_theta", "float", 10000.0, "旋转位置的底数", above=0),
    _with("ask", _key("dropout", "float", 0.0, "随机失活率，仅训练时", low=0, high=0.95)),
    _key("scale", "float", 0.02, "LoRA 的 A 矩阵初始标准差", above=0),
    _with("ask", _key("alpha", "float", 0.01, "负载均衡项 Lexp 的权重", low=0)),
    _key("routed_scaling", "float", 1.0, "路由专家输出的系数", above=0),
    _key("activation", "choice", "swiglu", "激活函数", choices=("swiglu", "geglu", "gelu", "relu", "relu2")),
    _key("norm", "choice", "rms", "归一化", choices=("rms", "layer")),
    _key("position", "choice", "rope", "位置编码", choices=("rope", "alibi", "learned")),
    _key("attention", "choice", "mla", "注意力：mla 有潜缓存，gqa 为分组查询", choices=("mla", "gqa")),
    _key("n_kv_head", "int", None, "gqa 的键值头数，须整除 n_head；null = n_head", low=1),
    _key("sliding_window", "int", None, "滑动窗口宽度，null = 不限", low=1),
    _key("use_moe", "bool", True, "混合专家；false = 稠密"),
    _key("use_fc2", "bool", True, "第二个预测头（预测 t+2）"),
    _with("ask", _key("fc2_every", "int", 1, "第二个头每几个位置学一个，1 = 全学", low=1)),
    _with("ask", _key("fc2_gradient", "float", 1.0, "第二个头的梯度传给主干的比例，0 = 不影响主干", low=0, high=1)),
    _key("fc2_token", "bool", False, "第二个头也看已经选定的下一个词元：起草更准"),
    _key("n_dense_layer", "int", 0, "开头几层用稠密前馈", low=0),
    _key("dense_hidden", "int", None, "稠密前馈的隐藏宽度，null = 与每个 token 实际用到的专家同宽", low=1),
    _key("tie_embedding", "bool", False, "输出头与词向量共用权重"),
    _key("router", "choice", "softmax", "路由打分", choices=("softmax", "sigmoid")),
    _with("ask", _key("router_noise", "float", 0.0, "路由噪声，仅训练时", low=0)),
    _with("ask", _key("router_bias_rate", "float", 0.001, "router=sigmoid 时每步把均衡偏置挪动多少，0 = 不动", low=0)),
    _with("free", _key("gradient_checkpointing", "bool", False, "重算激活以省显存，结果不变")),
    _with("ask", _key("moe_loss", "choice", "lexp", "均衡损失：lexp 或按序列的 aux", choices=("lexp", "aux"))),
    _with("ask", _key("router_z_loss", "float", 0.0, "路由 z 损失的权重", low=0)),
    _key("max_position", "int", None, "learned 位置的最大长度，null = 各阶段 max_len 的最大值", low=1),
    _key("qk_norm", "bool", False, "每个头的查询和键先归一化（仅 gqa；不能导出）"),
    _key("counted", "int", 0, "把训练文本里数出来的 2 到 n 元组混进第一个头，0 = 不用（须 use_fc2=false；不能导出）", low=0),
    _key("init_std", "float", 0.02, "权重初始标准差", above=0),
    _key("norm_eps", "float", 1e-6, "归一化的小常数", above=0),
)

_RUN = _block(
    "run", "运行", "free",
    _key("device", "str", "auto", "设备：auto cpu cuda cuda:0 mps …"),
    _with("never", _key("token_kind", "choice", "jieba", "切词方式", choices=("jieba", "char"))),
    _key("cache_dir", "path", "{out_dir}/cache", "token 缓存的文件夹"),
    _key("out_dir", "path", "out", "检查点的文件夹"),
    _key("log_dir", "path", "logs", "逐行指标（jsonl）与曲线的文件夹"),
    _key("log_file", "path", "log.txt", "文字日志"),
    _key("name", "str", None, "本次训练的名字，检查点放到 out_dir/名字/"),
    _with("ask", _key("mixed_precision", "choice", "auto", "混合精度", choices=("auto", "no", "fp16", "bf16"))),
    _key("save_precision", "choice", "fp32", "检查点的精度（续训状态始终精确）", choices=("fp32", "fp16", "bf16")),
    _key("compile", "choice", "no", "torch.compile：编译归一化和前馈层；auto = 有显卡、有编译器且步数够多时", choices=("auto", "no", "yes")),
    _key("threads", "int", None, "CPU 线程数，null = 自动", low=1),
    _key("tracker", "choice", "none", "实验跟踪", choices=("none", "tensorboard", "wandb", "swanlab")),
    _key("distributed", "choice", "ddp", "多进程（torchrun）时的并行方式", choices=("ddp", "fsdp")),
    _key("fsdp_sharding", "choice", "FULL_SHARD", "FSDP 的切分方式", choices=("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD")),
    _key("resume", "path", "auto", "续训：auto、none 或检查点路径"),
    _key("allow_change", "bool", False, "续训时允许改动学习率、批大小等可安全改动的键"),
    _key("max_bad_share", "float", 0.001, "坏行占比超过它（且多于 10 行）就停止", low=0, high=1),
    _key("dry_run", "bool", False, "只做训练前检查，不训练"),
    _key("find_lr", "bool", False, "只寻找学习率，不训练"),
    _key("find_batch", "bool", False, "只寻找放得下的最大批"),
    _key("overfit_one_batch", "int", 0, "在同一批上训练 N 步以查错，0 = 关", low=0),
    _key("check_gradients", "bool", False, "列出没有梯度的参数"),
    _key("plan", "str", None, "只估算多机训练，如 gpus=64,nodes=8,tokens=20e9,bandwidth_gbit=400"),
)

_DATA = _block(
    "stage", "数据", "never",
    _key("json_data_path", "paths", None, "训练数据：文件、列表、通配或 hf:名字"),
    _with("free", _key("vocab_data_path", "paths", None, "建词表用的数据，null = pre 与 sft 的训练数据，有自己的就不含内置的")),
    _with("free", _key("vocab_trg_path", "path", "{out_dir}/vocab.json", "词表文件，不存在则建")),
    _with("ask", _key("eval_data_path", "paths", None, "留出数据，null = 从训练数据中划出 eval_share")),
    _key("eval_share", "float", None, "划为留出数据的比例（每 1/eval_share 行一行），null = 0.02（不足 100 行不划），0 = 不划", low=0, high=0.5),
    _key("text_field", "strings", None, "正文所在的字段，一个或几个，null = 自动识别"),
    _key("columns", "strings", None, "各字段的意思，如 user=问题 assistant=回答（还有 input system history messages chosen rejected text），null = 自动识别"),
    _key("hf_subset", "str", None, "hf:名字 的子集"),
    _key("hf_split", "str", "train", "hf:名字 的划分"),
    _key("hf_streaming", "bool", False, "hf:名字 边下载边用"),
    _key("training_mode", "choice", "instruction_finetuning", "训练方式", choices=("pretraining", "instruction_finetuning")),
    _key("max_len", "int", 256, "一行的 token 数", low=4),
    _key("seed", "int", 0, "随机种子", low=0, high=2 ** 63 - 1),
    _with("free", _key("num_workers", "int", 0, "读数据的进程数", low=0, high=1024)),
    _with("free", _key("prefetch_factor", "int", 2, "每个进程预读的批数", low=1)),
    _key("replay_share", "float", 0.0, "混入通用数据的比例，防遗忘", low=0, high=0.95),
    _with("free", _key("replay_data_path", "paths", None, "混入的通用数据，null = sft 的训练数据")),
    _with("free", _key("forget_limit", "float", 0.3, "通用数据的留出损失（nats）升高超过它就警告，null = 不警告", low=0, null=True)),
)
_LENGTH = _block(
    "stage", "训练长度", "raise",
    _key("max_epochs", "int", 1, "轮数", low=1),
    _key("max_steps", "int", None, "最多优化步数，null = 由轮数决定", low=1),
    _with("free", _key("minutes", "float", None, "训练几分钟，代替 max_epochs 和 max_steps：第一次启动时测速，定下步数，续训不变", above=0)),
    _with("never", _key("n_of_samples", "int", None, "每块的记录数，null = 16384", low=1)),
    _key("n_of_samplings", "int", None, "块数，null = 用完文件", low=1),
    _with("ask", _key("batch_size", "int", 8, "一个微批的行数", low=1)),
    _with("ask", _key("accumulation_steps", "int", 1, "几个微批更新一次", low=1)),
)
_OPTIM = _block(
    "stage", "优化器", "ask",
    _with("never", _key("optimizer", "choice", "adam", "优化器", choices=("adam", "adamw", "sgd", "muon"))),
    _key("expert_turns", "int", 4, "optimizer=muon 时每步更新几分之一的路由专家（4 = 轮流四分之一），0 = 专家用 AdamW", low=0),
    _key("weight_decay", "float", 0.1, "权重衰减，只作用于矩阵；optimizer=adam 时不用", low=0),
    _key("beta1", "float", 0.9, "Adam 的 β1，也是 SGD 的动量", low=0, high=0.99999),
    _key("beta2", "float", 0.95, "Adam 的 β2", low=0, high=0.9999999),
    _key("eps", "float", 1e-8, "Adam 的 ε", above=0),
    _key("pair_start", "int", None, "起步前让词向量和输出头先学词对计数，走几遍词表；null = 从零训练时 12 遍（词表太大、共用权重时不做），0 = 不做",
         low=0, stages=("pre",)),
    _key("max_norm", "float", 1.0, "梯度裁剪的总范数，0 = 关", low=0),
)
_RATE = _block(
    "stage", "学习率", "ask",
    _key("init_lr", "float", 5e-4, "学习率的峰值（memory 阶段写 memory_lr）", above=0),
    _key("embedding_lr", "float", None, "词向量与输出头的学习率峰值，null = init_lr", above=0, stages=("pre",)),
    _key("min_lr", "float", 1e-7, "指数衰减的下限", low=0),
    _key("decay", "float", 0.9995, "指数衰减每步的系数", above=0, high=1),
    _key("scheduler", "choice", "exponential", "学习率规则", choices=("exponential", "cosine", "linear", "constant")),
    _key("warmup_index", "int", -1, "按块预热：前几块（跨轮接着数）线性升温，须在 keep_temp_index 之内，-1 = 关（仅 exponential）", low=-1),
    _key("warmup_steps", "int", 0, "按步预热的步数", low=0),
    _key("keep_temp_index", "int", -1, "到第几块为止不衰减，-1 = 关（仅 exponential）", low=-1),
    _key("min_lr_ratio", "float", 0.1, "余弦终点与峰值之比", low=0, high=1),
)
_SAVE = _block(
    "stage", "保存与评估", "free",
    _key("save_frq", "int", None, "每几块保存一次，null = 关", low=1),
    _key("save_steps", "int", 500, "每几步保存一次，null = 关", low=1, null=True),
    _key("eval_steps", "int", "auto", "每几步在留出数据上评估，auto = 全程约十次，null = 只在结束时", low=1, null=True),
    _key("logging_steps", "int", "auto", "每几步写一行日志，auto = 10，短的训练更密，null = 关", low=1, null=True),
    _key("save_total_limit", "int", 3, "保留最近几个检查点，null = 全部", low=1, null=True),
    _key("save_best_model", "bool", True, "另存留出损失最低的模型"),
    _key("early_stopping", "bool", False, "留出损失不再下降就停"),
    _key("early_stopping_patience", "int", 3, "容忍几次没有进步", low=1),
    _key("early_stopping_threshold", "float", 0.0, "多少才算进步", low=0),
)
_START = _block(
    "stage", "起点", "free",
    _key("last_index", "int", -1, "从第几块的检查点接着训练，-1 = 不指定", low=-1),
    _with("never", _key("pretraining_model_path", "path", None, "底座模型，none = 从零开始")),
    _with("never", _key("init_from", "path", None, "只取权重的检查点，不能与续训同用")),
)
_OWN = (
    _block("stage", "本阶段专有", "never",
           _key("rank", "int", 8, "LoRA 的秩；memory 阶段默认 0 = 不带 LoRA", low=0, stages=("lora", "memory")),
           _key("lora_alpha", "float", None, "LoRA 输出系数为 lora_alpha/rank，null = rank", above=0, stages=("lora", "memory")),
           _key("lora_targets", "strings", "attention", "加 LoRA 的部位，一个或几个", stages=("lora", "memory")),
           _with("ask", _key("lora_dropout", "float", 0.0, "LoRA 的随机失活率", low=0, high=0.95, stages=("lora", "memory"))),
           _key("prefix_len", "int", 16, "前缀长度", low=1, stages=("prefix",)),
           _key("prefix_kind", "choice", "kv", "kv = 每层的键值前缀，role = 只学角色的词向量", choices=("kv", "role"), stages=("prefix",)),
           _key("memory_tokens", "int", 64, "记忆的行数", low=1, stages=("memory",)),
           _key("memory_chapters", "int", 8, "记忆分成几章，须整除 memory_tokens", low=1, stages=("memory",)),
           _key("memory_topk", "int", 2, "每个 token 读几章", low=1, stages=("memory",)),
           _key("memory_layers", "ints", None, "带记忆的层（从 0 数），null = 每层", low=0, stages=("memory",)),
           _key("experts", "paths", [], "供选择的模型或适配器", stages=("gate",)),
           _key("gate_hidden", "int", 64, "门的隐藏宽度", low=1, stages=("gate",)))
    + _block("stage", "本阶段专有", "ask",
             _key("forget_penalty", "float", 0.0, "改变底座对通用数据的输出要付的代价，防遗忘，0 = 不管", low=0, stages=("lora",)),
             _key("memory_lr", "float", 2e-4, "记忆的学习率", above=0, stages=("memory",)),
             _key("lora_lr", "float", 1e-4, "与记忆同训的 LoRA 的学习率", above=0, stages=("memory",)),
             _key("base_model_lr", "float", None, "底座的学习率，null = 冻结", above=0, stages=("memory",)),
             _key("load_balance_coef", "float", 0.01, "记忆路由的均衡权重", low=0, stages=("memory",)),
             _key("auxiliary_coef", "float", 0.0, "记忆路由的辅助权重", low=0, stages=("memory",)),
             _key("z_loss_coef", "float", 0.001, "记忆路由的 z 损失权重", low=0, stages=("memory",)),
             _key("beta", "float", 0.1, "DPO 的 β", above=0, stages=("dpo",))))

KEYS = {key.name: key for key in
        (*_MODEL, *_RUN, *_DATA, *_LENGTH, *_OPTIM, *_RATE, *_SAVE, *_START, *_OWN)}

# What differs from the table's default, per stage. Table and stages together say what model_config.json says; a test holds them equal.
_DATA_AND_BASE = {"json_data_path": "data/demo_sft.jsonl", "pretraining_model_path": "{out_dir}/TinySeek_SFT_final.pkl"}
_ADAPTER = {**_DATA_AND_BASE, "optimizer": "adamw", "scheduler": "cosine", "warmup_steps": 10, "max_epochs": 20, "max_steps": 150,
            "batch_size": 4, "eval_steps": 50}
_MUON = {"optimizer": "muon", "scheduler": "cosine", "warmup_steps": 40, "min_lr_ratio": 0.02, "weight_decay": 0.05}
STAGE_DEFAULTS = {
    "pre": {**_MUON, "json_data_path": "data/demo_pre.jsonl", "training_mode": "pretraining", "init_lr": 3e-3},
    "sft": {**_MUON, "json_data_path": "data/demo_sft.jsonl", "pretraining_model_path": "{out_dir}/TinySeek_Pre_final.pkl",
            "init_lr": 2e-3, "min_lr": 5e-7, "decay": 0.99995, "max_epochs": 2},
    "lora": {**_ADAPTER, "init_lr": 4e-3, "batch_size": 2, "max_steps": 300, "eval_steps": 100, "forget_penalty": 50.0,
             "lora_targets": ["attention", "shared", "heads"]},
    "prefix": {**_ADAPTER, "init_lr": 5e-3},
    "memory": {**_ADAPTER, "rank": 0, "memory_lr": 2e-3, "lora_lr": 1e-3},
    "gate": {**_ADAPTER, "pretraining_model_path": None, "init_lr": 3e-3, "batch_size": 32, "max_epochs": 10,
             "max_steps": 200, "eval_steps": "auto"},
    "dpo": {**_ADAPTER, "json_data_path": None, "init_lr": 1e-4, "min_lr": 1e-6, "batch_size": 8, "max_epochs": 3, "max_steps": None,
            "eval_steps": "auto"},
}
DEMO_DATA = ("data/demo_pre.jsonl", "data/demo_sft.jsonl")

# Keys that ask for other work than training; a command that does not do it refuses them.
INSTEAD = ("dry_run", "find_lr", "find_batch", "overfit_one_batch", "check_gradients", "plan", "resume")

MODEL_KEYS = tuple(k for k, key in KEYS.items() if key.scope == "model")
RUN_KEYS = tuple(k for k, key in KEYS.items() if key.scope == "run")


def stage_keys(stage):
    """Names of the keys in a stage's section, in the table's order."""
    return [name for name, key in KEYS.items() if key.scope == "stage" and stage in key.stages]


def stage_of(options):
    """The stage whose flat resolved options these are."""
    return max((stage for stage in STAGES if set(stage_keys(stage)) <= options.keys()), key=lambda stage: len(stage_keys(stage)))


def default_of(name, stage=None):
    """The default of a key, for one stage where stages differ. Paths are still relative."""
    value = STAGE_DEFAULTS.get(stage, {}).get(name, KEYS[name].default)
    return list(value) if isinstance(value, list) else value

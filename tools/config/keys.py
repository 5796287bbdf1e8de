"""The one table of configuration keys: name, kind, default, range or choices, meaning. What only some stages have is in
stages.py.

Everything else (the manager, the command line, `--help`, the rules of a resume) reads this table; a new option of the
toolkit is one new line here.

kind     int float bool str choice; path paths (one or several, patterns and `hf:name` allowed); strings ints (lists)
scope    "model": the network's shape, flat at the top; "run": flat at the top; "stage": one value per stage section
change   what a resume makes of another value: "never", "ask" (only with --allow_change), "raise" (raising is free),
         "free"
"""
from tools.config.key import ask, block, free, key, never
from tools.config.stages import TABLE, own_keys

STAGES = tuple(TABLE)
STAGE_TITLES = {name: row.title for name, row in TABLE.items()}

_MODEL = block(
    "model", "模型", "never",
    key("vocab_size", "int", 5000, "词表大小（含 272 个保留与字节编号）", low=272),
    key("n_layer", "int", 4, "层数", low=1),
    key("pad_idx", "int", 0, "填充符的编号，固定为 0", low=0, high=0),
    key("n_head", "int", 6, "注意力头数，须整除 d_model", low=1),
    key("d_model", "int", 192, "宽度", low=1),
    key("d_c", "int", 48, "键值潜向量的宽度（MLA）", low=1),
    key("d_q", "int", None, "查询潜向量的宽度，null = 2×d_c", low=1),
    key("d_r", "int", 16, "带旋转位置的维数，须为偶数（MLA）", low=2),
    key("hidden", "int", 192, "一个专家的隐藏宽度", low=1),
    key("other_experts", "int", 8, "路由专家的个数", low=1),
    key("shared_experts", "int", 1, "共享专家的个数，至少 1", low=0),
    key("keep", "int", 2, "每个词元选用的路由专家数", low=1),
    key("ro_theta", "float", 10000.0, "旋转位置的底数", above=0),
    ask(key("dropout", "float", 0.0, "随机失活率，仅训练时", low=0, high=0.95)),
    key("scale", "float", 0.02, "LoRA 的 A 矩阵初始标准差", above=0),
    ask(key("alpha", "float", 0.01, "负载均衡项 Lexp 的权重", low=0)),
    key("routed_scaling", "float", 1.0, "路由专家输出的系数", above=0),
    key("activation", "choice", "swiglu", "激活函数", choices=("swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2")),
    key("norm", "choice", "rms", "归一化", choices=("rms", "layer")),
    key("position", "choice", "rope", "位置编码", choices=("rope", "alibi", "learned")),
    key("attention", "choice", "mla", "注意力：mla 有潜缓存，gqa 为分组查询", choices=("mla", "gqa")),
    key("n_kv_head", "int", None, "gqa 的键值头数，须整除 n_head；null = n_head", low=1),
    key("head_dim", "int", None, "每头宽度，null = d_model / n_head", low=1),
    key("bias", "choice", "none", "偏置：qkv 只在查询、键、值上，all 在每个投影上（仅 gqa；all 须 use_moe=false）",
        choices=("none", "qkv", "all")),
    ask(key("rope_scaling", "choice", "none", "把旋转位置拉长，用于更长的上下文",
            choices=("none", "linear", "llama3", "yarn"))),
    ask(key("rope_factor", "float", 1.0, "旋转位置拉长几倍", low=1)),
    ask(key("rope_original", "int", None, "拉长以前训练时的长度（llama3 和 yarn 要写）", low=1)),
    ask(key("rope_attention", "float", None, "查询和键各放大几倍，null = 照 yarn 的公式，别的为 1", above=0)),
    key("sliding_window", "int", None, "滑动窗口宽度，null = 不限", low=1),
    key("use_moe", "bool", True, "混合专家；false = 稠密"),
    key("use_fc2", "bool", True, "第二个预测头（预测 t+2）"),
    ask(key("fc2_every", "int", 1, "第二个头每几个位置学一个，1 = 全学", low=1)),
    ask(key("fc2_gradient", "float", 1.0, "第二个头的梯度传给主干的比例，0 = 不影响主干", low=0, high=1)),
    key("fc2_token", "bool", False, "第二个头也看已经选定的下一个词元：起草更准"),
    key("n_dense_layer", "int", 0, "开头几层用稠密前馈", low=0),
    key("dense_hidden", "int", None, "稠密前馈的隐藏宽度，null = 与每个词元实际用到的专家同宽", low=1),
    key("tie_embedding", "bool", False, "输出头与词向量共用权重"),
    key("router", "choice", "softmax", "路由打分", choices=("softmax", "sigmoid")),
    ask(key("router_noise", "float", 0.0, "路由噪声，仅训练时", low=0)),
    ask(key("router_bias_rate", "float", 0.001, "router=sigmoid 时每步把均衡偏置挪动多少，0 = 不动", low=0)),
    free(key("gradient_checkpointing", "bool", False, "重算激活以省显存，结果不变")),
    ask(key("moe_loss", "choice", "lexp", "均衡损失：lexp 或按序列的 aux", choices=("lexp", "aux"))),
    ask(key("router_z_loss", "float", 0.0, "路由 z 损失的权重", low=0)),
    key("max_position", "int", None, "learned 位置的最大长度，null = 各阶段 max_len 的最大值", low=1),
    key("qk_norm", "bool", False, "每个头的查询和键先归一化（仅 gqa；导出成 Qwen3）"),
    key("counted", "int", 0, "把训练文本里数出来的 2 到 n 元组混进第一个头，0 = 不用（须 use_fc2=false；不能导出）", low=0),
    key("init_std", "float", 0.02, "权重初始标准差", above=0),
    key("norm_eps", "float", 1e-6, "归一化的小常数", above=0),
)

_RUN = block(
    "run", "运行", "free",
    key("device", "str", "auto", "设备：auto cpu cuda cuda:0 mps …"),
    never(key("token_kind", "choice", "jieba", "切词方式：jieba 按词，char 按字，bpe 训练字节级 BPE（另装 requirements-export.txt）",
              choices=("jieba", "char", "bpe"))),
    key("cache_dir", "path", "{out_dir}/cache", "词元缓存的文件夹"),
    key("out_dir", "path", "out", "检查点的文件夹"),
    key("log_dir", "path", "logs", "逐行指标（jsonl）与曲线的文件夹"),
    key("log_file", "path", "log.txt", "文字日志"),
    key("name", "str", None, "本次训练的名字，检查点放到 out_dir/名字/"),
    ask(key("mixed_precision", "choice", "auto", "混合精度", choices=("auto", "no", "fp16", "bf16"))),
    key("save_precision", "choice", "fp32", "检查点的精度（续训状态始终精确）", choices=("fp32", "fp16", "bf16")),
    key("compile", "choice", "no", "torch.compile：编译归一化和前馈层；auto = 有显卡、有编译器且步数够多时", choices=("auto", "no", "yes")),
    key("threads", "int", None, "CPU 线程数，null = 自动", low=1),
    key("tracker", "choice", "none", "实验跟踪", choices=("none", "tensorboard", "wandb", "swanlab")),
    key("distributed", "choice", "ddp", "多进程（torchrun）时的并行方式", choices=("ddp", "fsdp")),
    key("fsdp_sharding", "choice", "FULL_SHARD", "FSDP 的切分方式", choices=("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD")),
    key("resume", "path", "auto", "续训：auto、none 或检查点路径"),
    key("allow_change", "bool", False, "续训时允许改动学习率、批大小等可安全改动的键"),
    key("max_bad_share", "float", 0.001, "坏行占比超过它（且多于 10 行）就停止", low=0, high=1),
    key("page", "bool", False, "训练时开一个网页看它怎么学会说话；只有本机能看，训练结束就停"),
    key("open", "bool", False, "同 page，并在浏览器里打开它"),
    key("dry_run", "bool", False, "只做训练前检查，不训练"),
    key("find_lr", "bool", False, "只寻找学习率，不训练"),
    key("find_batch", "bool", False, "只寻找放得下的最大批"),
    key("overfit_one_batch", "int", 0, "在同一批上训练 N 步以查错，0 = 关", low=0),
    key("check_gradients", "bool", False, "列出没有梯度的参数"),
)

_DATA = block(
    "stage", "数据", "never",
    key("json_data_path", "paths", None, "训练数据：文件、列表、通配或 hf:名字"),
    free(key("vocab_data_path", "paths", None, "建词表用的数据，null = pre 与 sft 的训练数据，有自己的就不含内置的")),
    free(key("vocab_trg_path", "path", "{out_dir}/vocab.json", "词表文件，不存在则建")),
    ask(key("eval_data_path", "paths", None, "留出数据，null = 从训练数据中划出 eval_share")),
    key("eval_share", "float", None, "划为留出数据的比例（每 1/eval_share 行一行），null = 0.02（不足 100 行不划），0 = 不划", low=0, high=0.5),
    key("text_field", "strings", None, "正文所在的字段，一个或几个，null = 自动识别"),
    key(
        "columns", "strings", None,
        "各字段的意思，如 user=问题 assistant=回答（还有 input system history messages chosen rejected text），null = 自动识别"),
    key("hf_subset", "str", None, "hf:名字 的子集"),
    key("hf_split", "str", "train", "hf:名字 的划分"),
    key("hf_streaming", "bool", False, "hf:名字 边下载边用"),
    key("training_mode", "choice", "instruction_finetuning", "训练方式", choices=("pretraining", "instruction_finetuning")),
    key("thinking", "choice", "auto", "回答里的思考：auto 有就学；on 没有的学成空的思考，聊天时可以关；off 不学",
        choices=("auto", "on", "off")),
    key("max_len", "int", 256, "一行的词元数", low=4),
    key("seed", "int", 0, "随机种子", low=0, high=2 ** 63 - 1),
    free(key("num_workers", "int", 0, "读数据的进程数", low=0, high=1024)),
    free(key("prefetch_factor", "int", 2, "每个进程预读的批数", low=1)),
    key("replay_share", "float", 0.0, "混入通用数据的比例，防遗忘", low=0, high=0.95),
    free(key("replay_data_path", "paths", None, "混入的通用数据，null = sft 的训练数据")),
    free(key("forget_limit", "float", 0.3, "通用数据的留出损失（nats）升高超过它就警告，null = 不警告", low=0, null=True)),
)
_LENGTH = block(
    "stage", "训练长度", "raise",
    key("max_epochs", "int", 1, "轮数", low=1),
    key("max_steps", "int", None, "最多优化步数，null = 由轮数决定", low=1),
    free(key("minutes", "float", None, "训练几分钟，代替 max_epochs 和 max_steps：第一次启动时测速，定下步数，续训不变", above=0)),
    never(key("n_of_samples", "int", None, "每块的记录数，null = 16384", low=1)),
    key("n_of_samplings", "int", None, "块数，null = 用完文件", low=1),
    ask(key("batch_size", "int", 8, "一个微批的行数", low=1)),
    ask(key("accumulation_steps", "int", 1, "几个微批更新一次", low=1)),
)
_OPTIM = block(
    "stage", "优化器", "ask",
    never(key("optimizer", "choice", "adam", "优化器", choices=("adam", "adamw", "sgd", "muon"))),
    key("expert_turns", "int", 0, "optimizer=muon 时路由专家也用 Muon，每步轮流更新几分之一（4 = 四分之一），0 = 专家用 AdamW", low=0),
    key("weight_decay", "float", 0.1, "权重衰减，只作用于矩阵；optimizer=adam 时不用", low=0),
    key("beta1", "float", 0.9, "Adam 的 β1，也是 SGD 的动量", low=0, high=0.99999),
    key("beta2", "float", 0.95, "Adam 的 β2", low=0, high=0.9999999),
    key("eps", "float", 1e-8, "Adam 的 ε", above=0),
    key("max_norm", "float", 1.0, "梯度裁剪的总范数，0 = 关", low=0),
)
_RATE = block(
    "stage", "学习率", "ask",
    key("init_lr", "float", 5e-4, "学习率的峰值（memory 阶段写 memory_lr）", above=0),
    key("min_lr", "float", 1e-7, "指数衰减的下限", low=0),
    key("decay", "float", 0.9995, "指数衰减每步的系数", above=0, high=1),
    key("scheduler", "choice", "exponential", "学习率规则", choices=("exponential", "cosine", "linear", "constant")),
    key("warmup_index", "int", -1, "按块预热：前几块（跨轮接着数）线性升温，须在 keep_temp_index 之内，-1 = 关（仅 exponential）", low=-1),
    key("warmup_steps", "int", 0, "按步预热的步数", low=0),
    key("keep_temp_index", "int", -1, "到第几块为止不衰减，-1 = 关（仅 exponential）", low=-1),
    key("min_lr_ratio", "float", 0.1, "余弦终点与峰值之比", low=0, high=1),
)
_SAVE = block(
    "stage", "保存与评估", "free",
    key("save_frq", "int", None, "每几个数据块保存一次，null = 关", low=1),
    key("save_steps", "int", 500, "每几步保存一次，null = 关", low=1, null=True),
    key("eval_steps", "int", "auto", "每几步在留出数据上评估，auto = 全程约十次，null = 只在结束时", low=1, null=True),
    key("logging_steps", "int", "auto", "每几步写一行日志，auto = 10，短的训练更密，null = 关", low=1, null=True),
    key("save_total_limit", "int", 3, "保留最近几个检查点，null = 全部", low=1, null=True),
    key("save_best_model", "bool", True, "另存留出损失最低的模型"),
    key("early_stopping", "bool", False, "留出损失不再下降就停"),
    key("early_stopping_patience", "int", 3, "容忍几次没有进步", low=1),
    key("early_stopping_threshold", "float", 0.0, "多少才算进步", low=0),
)
_START = block(
    "stage", "起点", "free",
    key("last_index", "int", -1, "从第几块的检查点接着训练，-1 = 不指定", low=-1),
    never(key("pretraining_model_path", "path", None, "底座模型，none = 从零开始")),
    never(key("init_from", "path", None, "只取权重的检查点，不能与续训同用")),
)
_ALL = (*_MODEL, *_RUN, *_DATA, *_LENGTH, *_OPTIM, *_RATE, *_SAVE, *_START)
KEYS = {one.name: one._replace(stages=STAGES) for one in _ALL} | own_keys()

DEMO_DATA = ("data/demo_pre.jsonl", "data/demo_sft.jsonl")

# Keys that ask for other work than training; a command that does not do it refuses them.
INSTEAD = ("dry_run", "find_lr", "find_batch", "overfit_one_batch", "check_gradients", "resume")

# What changes no tensor and yet stays as the start model has it, unless a run, a chat or an evaluation says otherwise.
STRETCH = ("rope_scaling", "rope_factor", "rope_original", "rope_attention")

MODEL_KEYS = tuple(k for k, key in KEYS.items() if key.scope == "model")
RUN_KEYS = tuple(k for k, key in KEYS.items() if key.scope == "run")


def stage_keys(stage):
    """Names of the keys in a stage's section, in the table's order."""
    return [name for name, key in KEYS.items() if key.scope == "stage" and stage in key.stages]


def stage_of(options):
    """The stage whose flat resolved options these are."""
    fitting = [stage for stage in STAGES if set(stage_keys(stage)) <= options.keys()]
    return max(fitting, key=lambda stage: len(stage_keys(stage)))


def default_of(name, stage=None):
    """The default of a key, for one stage where stages differ. Paths are still relative."""
    defaults = TABLE[stage].defaults if stage in TABLE else {}
    value = defaults.get(name, KEYS[name].default)
    return list(value) if isinstance(value, list) else value

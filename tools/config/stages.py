"""The one table of stages, the kinds of training. A new one is a line here, a file in train_agent/trainers/ whose
build_stage(options) returns a Stage, and a wrapper script in train_agent/; see docs/code-map.md.

label      the word in its files' names          title    what the training is called (Chinese)
makes      what it makes (Chinese)               module   the file in train_agent/trainers/
defaults   where they differ from keys.py        keys     options that only some stages have; two stages may share them

The defaults here and in keys.py together say what model_config.json says; a test holds them equal.
"""
from collections import namedtuple

from tools.config.key import ask, block, key, never, own

Row = namedtuple("Row", "label title makes module defaults keys", defaults=((),))

_MUON = {"optimizer": "muon", "scheduler": "cosine", "warmup_steps": 40, "min_lr_ratio": 0.02, "weight_decay": 0.05}
_ADAPTER = {"json_data_path": "data/demo_sft.jsonl", "pretraining_model_path": "{out_dir}/TinySeek_SFT_final.pkl",
            "optimizer": "adamw", "scheduler": "cosine", "warmup_steps": 10, "max_epochs": 20, "max_steps": 150,
            "batch_size": 4, "eval_steps": 50}

_PRE = (
    *block("stage", "优化器", "ask",
           key("pair_start", "int", None, "起步前让词向量和输出头先学词对计数，走几遍词表；null = 从零训练时 12 遍（词表太大、"
               "共用权重时不做），0 = 不做", low=0),
           key("copy_start", "bool", None, "起步时就有会照抄前文的注意力头（人名、数字、没见过的词）；null = 能就做"
               "（mla、rope，从词对起步）")),
    *block("stage", "学习率", "ask",
           key("embedding_lr", "float", None, "词向量与输出头的学习率峰值，null = init_lr，从词对起步时是它的三分之一", above=0)))
_LORA = own(
    "never",
    key("rank", "int", 8, "LoRA 的秩；memory 阶段默认 0 = 不带 LoRA（写了 lora_lr 则为 8）", low=0),
    key("lora_alpha", "float", None, "LoRA 输出系数为 lora_alpha/rank，null = rank", above=0),
    key("lora_targets", "strings", "attention", "加 LoRA 的模块，一个或几个"),
    ask(key("lora_dropout", "float", 0.0, "LoRA 的随机失活率", low=0, high=0.95)))
_FORGET = own("ask", key("forget_penalty", "float", 0.0, "改变底座对通用数据的输出要付的代价，防遗忘，0 = 不管", low=0))
_TEACHER = block(
    "stage", "老师", "ask",
    never(key("teacher", "path", None, "老师：同一份词表的模型 .pkl，第一个输出头也学它给各个词元的概率，null = 没有")),
    key("kd_alpha", "float", 1.0, "向老师学的那一项（KL，乘 T 的平方）的权重", above=0),
    key("kd_temperature", "float", 1.0, "比较老师和学生的概率时的温度 T", above=0),
    key("kd_topk", "int", 32, "每个词元记下老师最看好的几个，其余合成一份，null = 全词表", low=1, null=True))
_PREFIX = own(
    "never",
    key("prefix_len", "int", 16, "前缀长度", low=1),
    key("prefix_kind", "choice", "kv", "kv = 每层的键值前缀，role = 只学角色的词向量", choices=("kv", "role")))
_MEMORY = own(
    "never",
    key("memory_tokens", "int", 64, "记忆的行数", low=1),
    key("memory_chapters", "int", 8, "记忆分成几章，须整除 memory_tokens", low=1),
    key("memory_topk", "int", 2, "每个词元读几章", low=1),
    key("memory_layers", "ints", None, "带记忆的层（从 0 数），null = 每层", low=0),
    ask(key("memory_lr", "float", 2e-4, "记忆的学习率", above=0)),
    ask(key("lora_lr", "float", 1e-4, "与记忆同训的 LoRA 的学习率", above=0)),
    ask(key("base_model_lr", "float", None, "底座的学习率，null = 冻结", above=0)),
    ask(key("load_balance_coef", "float", 0.01, "记忆路由的均衡权重", low=0)),
    ask(key("auxiliary_coef", "float", 0.0, "记忆路由的辅助权重", low=0)),
    ask(key("z_loss_coef", "float", 0.001, "记忆路由的 z 损失权重", low=0)))
_GATE = own(
    "never",
    key("experts", "paths", [], "供选择的模型或适配器"),
    key("gate_hidden", "int", 64, "选择门的隐藏宽度", low=1))
_DPO = own("ask", key("beta", "float", 0.1, "DPO 的 β", above=0))
_RL = (
    *own("never",
         key("reward", "strings", "exact", "奖励，一个或几个：exact contains number regex format length repetition "
             "tool_result，或 文件.py:函数；后面可加 =权重"),
         key("reward_pattern", "str", None, "奖励 regex 用的正则表达式，行里有 pattern 的照行里的"),
         key("reward_format", "str", None, "奖励 format 要的样子：json，或带空的话如 答案是{}。行里有 format 的照行里的"),
         key("reward_length", "int", None, "奖励 length 给满分的最多字数，行里有 length 的照行里的", low=1),
         key("reward_needless", "float", 0.25, "奖励 tool_result 里，一次没必要的调用扣多少，行里有 needless 的照行里的", low=0),
         key("reward_failed", "float", 0.25, "奖励 tool_result 里，一次出错的调用扣多少，行里有 failed 的照行里的", low=0),
         key("tools", "strings", None, "回答时能用的工具：all calculate calendar convert、Python 文件、供查找的文件；null = 不用")),
    *own("ask",
         key("rl_loss", "choice", "grpo", "强化学习的损失", choices=("grpo", "cispo", "dr_grpo", "reinforce")),
         key("group_size", "int", 8, "一题取几个回答", low=2, high=1024),
         key("max_new_tokens", "int", 64, "一个回答最多几个词元", low=1),
         key("rl_updates", "int", 1, "一批回答学几次", low=1),
         key("clip_low", "float", 0.2, "比率低于 1 - clip_low 就不再往下推", low=0, high=1),
         key("clip_high", "float", 0.28, "比率高于 1 + clip_high 就不再往上推", low=0),
         key("kl", "float", 0.0, "离开起点模型要付的代价（k3 估计），0 = 不管，也不留第二份模型", low=0),
         key("replay_weight", "float", 0.0, "每步还照 SFT 学几行通用数据（replay_data_path），这份损失的分量，防遗忘，0 = 不学", low=0),
         key("entropy_bonus", "float", 0.0, "说法多样的好处，0 = 没有", low=0),
         key("curriculum", "float", 0.25, "一批里有多大的比例换成上次有对有错的提问", low=0, high=1)),
    *own("free",
         key("write_best", "path", None, "不训练，只取回答：每题最好的写成 SFT 数据"),
         key("write_pairs", "path", None, "不训练，只取回答：每题最好和最差的写成 DPO 数据")))

TABLE = {
    "pre": Row("Pre", "预训练", "预训练模型", "pre_training",
               {**_MUON, "json_data_path": "data/demo_pre.jsonl", "training_mode": "pretraining", "init_lr": 3e-3},
               (*_PRE, *_TEACHER)),
    "sft": Row("SFT", "指令微调", "对话模型", "sft_training",
               {**_MUON, "json_data_path": "data/demo_sft.jsonl",
                "pretraining_model_path": "{out_dir}/TinySeek_Pre_final.pkl",
                "init_lr": 2e-3, "min_lr": 5e-7, "decay": 0.99995, "max_epochs": 2}, _TEACHER),
    "lora": Row("Lora", "LoRA 微调", "LoRA 适配器", "lora_tuning",
                {**_ADAPTER, "init_lr": 4e-3, "batch_size": 2, "max_steps": 300, "eval_steps": 100,
                 "forget_penalty": 50.0,
                 "lora_targets": ["attention", "shared", "heads"]}, (*_LORA, *_FORGET, *_TEACHER)),
    "prefix": Row("Prefix", "前缀微调", "前缀适配器", "prefix_tuning", {**_ADAPTER, "init_lr": 5e-3}, _PREFIX),
    "memory": Row("Memory", "记忆适配器", "记忆适配器", "memory_tuning",
                  {**_ADAPTER, "rank": 0, "memory_lr": 2e-3, "lora_lr": 1e-3}, (*_LORA, *_MEMORY)),
    "gate": Row("gate", "选择门", "选择门", "gated_training",
                {**_ADAPTER, "pretraining_model_path": None, "init_lr": 3e-3, "batch_size": 32, "max_epochs": 10,
                 "max_steps": 200, "eval_steps": "auto"}, _GATE),
    "dpo": Row("DPO", "偏好对齐", "偏好对齐模型", "dpo_tuning",
               {**_ADAPTER, "json_data_path": None, "init_lr": 1e-4, "min_lr": 1e-6, "batch_size": 8, "max_epochs": 3,
                "max_steps": None, "eval_steps": "auto"}, _DPO),
    "rl": Row("RL", "强化学习", "强化学习模型", "reward_tuning",
              {**_ADAPTER, "init_lr": 1e-4, "scheduler": "constant", "batch_size": 16, "max_epochs": 1,
               "max_steps": 200, "weight_decay": 0.0, "eval_steps": "auto"}, _RL),
}


def own_keys():
    """{name: Key} of the keys of the table, each with the stages that have it."""
    found = {}
    for stage, row in TABLE.items():
        for one in row.keys:
            had = found[one.name].stages if one.name in found else ()
            found[one.name] = one._replace(stages=(*had, stage))
    return found


def trained_by(label):
    """What the training is called whose files carry this word (Chinese)."""
    return next((row.title for row in TABLE.values() if row.label == label), label)


def made_by(label):
    """What it makes (Chinese)."""
    return next((row.makes for row in TABLE.values() if row.label == label), label)

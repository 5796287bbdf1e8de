"""Laws between keys, checked on the merged configuration, before data or device are touched."""
import re

from tools.config.keys import STAGES
from tools.errors import UserError
from tools.reading.columns import fields_of


def check_all(config):
    """Raises UserError (2) at the first combination that cannot work."""
    _check_model(config)
    _check_run(config)
    for stage in STAGES:
        _check_stage(stage, config[stage], config)
    _check_adapters(config)


def is_device(path):
    """Whether a part of a path is one of the names that Windows takes for a device, with any ending: aux, NUL.txt,
    com1."""
    return any(re.fullmatch(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³])[ .]*(\..*)?", part)
               for part in re.split(r"[\\/]", str(path)))


def _demand(law, message):
    if not law:
        raise UserError(message)


def _check_model(c):
    _demand(c["head_dim"] or c["d_model"] % c["n_head"] == 0,
            f"n_head={c['n_head']} 不能整除 d_model={c['d_model']}，请改其中一个，或用 head_dim 写明每头宽度。")
    if c["attention"] == "mla":
        _demand(c["d_r"] % 2 == 0, f"d_r={c['d_r']} 应为偶数（旋转位置成对作用）。")
        _demand(c["n_kv_head"] in (None, c["n_head"]), "n_kv_head 只用于 attention: gqa；mla 请用 d_c 调节缓存大小。")
    else:
        n_kv_head = c["n_kv_head"] or c["n_head"]
        _demand(c["n_head"] % n_kv_head == 0, f"n_kv_head={n_kv_head} 不能整除 n_head={c['n_head']}，请改其中一个。")
        if c["position"] == "rope":
            width = c["head_dim"] or c["d_model"] // c["n_head"]
            _demand(width % 2 == 0, f"每头宽度 {'head_dim' if c['head_dim'] else 'd_model/n_head'}={width} 应为偶数（旋转位置成对作用）。")
    _demand(c["bias"] == "none" or c["attention"] == "gqa", "bias 只用于 attention: gqa。")
    _demand(c["bias"] != "all" or not c["use_moe"], "bias: all 用于稠密的模型，专家没有偏置：请同时写 use_moe: false。")
    _demand(c["rope_scaling"] == "none" or c["position"] == "rope", "rope_scaling 拉长的是旋转位置，请用 position: rope。")
    _demand(c["rope_scaling"] not in ("llama3", "yarn") or c["rope_original"],
            f"rope_scaling={c['rope_scaling']} 还要知道原来训练时的长度，请写 rope_original。")
    _demand(not c["qk_norm"] or c["attention"] == "gqa", "qk_norm 只用于 attention: gqa；mla 的潜向量本来就归一化了。")
    _demand(c["counted"] != 1, "counted=1 没有意义：2 到 n 元组请写 n，不用写 0。")
    _demand(not c["counted"] or not c["use_fc2"], "counted 数的是下一个词元，没有再下一个的：请同时写 use_fc2: false。")
    if c["use_moe"]:
        _demand(c["shared_experts"] >= 1, "shared_experts 至少为 1；不要专家请写 use_moe: false。")
        _demand(c["keep"] <= c["other_experts"],
                f"keep={c['keep']} 大于 other_experts={c['other_experts']}：选用的专家不能多于路由专家。")
    _demand(c["n_dense_layer"] <= c["n_layer"], f"n_dense_layer={c['n_dense_layer']} 大于 n_layer={c['n_layer']}。")


def _check_run(c):
    _demand(re.fullmatch(r"auto|cpu|mps|(cuda|xpu|npu)(:\d{1,3})?", c["device"]),
            f"device={c['device']} 无法识别，可选：auto cpu cuda cuda:0 mps xpu npu。")
    name = c["name"]
    _demand(
        not any(one and is_device(one) for one in (name, c["out_dir"], c["log_dir"], c["log_file"], c["cache_dir"])),
            "name、out_dir、log_dir、log_file 里不能有 CON、NUL、AUX、PRN、COM1、LPT1 这样的名字：Windows 把它们当设备，而不是文件。")
    _demand(name is None or (re.fullmatch(r"[^\\/:*?\"<>|\x00-\x1f]{1,100}", name) and name.strip(" .") == name),
            f"name={name} 不能作文件夹的名字：不要用斜杠、冒号、引号等符号，首尾不要有空格或点。")


def _check_stage(stage, s, c):
    _demand(s["scheduler"] != "exponential" or s["min_lr"] <= s["init_lr"],
            f"{stage}.min_lr={s['min_lr']:g} 大于 init_lr={s['init_lr']:g}，学习率无从衰减。")
    _demand(s["warmup_index"] <= 0 or s["warmup_steps"] == 0, f"{stage}：warmup_index（按块）和 warmup_steps（按步）只能用一个。")
    _demand(s["keep_temp_index"] <= 0 or s["warmup_steps"] == 0, f"{stage}：keep_temp_index（按块）和 warmup_steps（按步）只能用一个。")
    _demand(s["init_from"] is None or c["resume"] in ("auto", "none"), f"{stage}：init_from（只取权重）和 resume（接着训练）只能用一个。")
    _demand(s["init_from"] is None or s["last_index"] < 0, f"{stage}：init_from（只取权重）和 last_index（接着训练）只能用一个。")
    fields_of(s)
    if s["early_stopping"]:
        _demand(s["eval_steps"] is not None, f"{stage}：early_stopping 要有评估，请给 eval_steps 一个步数。")
        _demand(s["eval_share"] != 0 or s["eval_data_path"],
                f"{stage}：early_stopping 要有留出数据，请给 eval_share 或 eval_data_path。")
    if c["position"] == "learned":
        _demand(s["max_len"] <= c["max_position"],
                f"{stage}.max_len={s['max_len']} 大于 max_position={c['max_position']}，学不到那么远的位置。")


def _check_adapters(c):
    _demand(c["lora"]["rank"] >= 1, "lora.rank 至少为 1。")
    m = c["memory"]
    _demand(m["memory_tokens"] % m["memory_chapters"] == 0,
            f"memory_chapters={m['memory_chapters']} 不能整除 memory_tokens={m['memory_tokens']}。")
    _demand(m["memory_topk"] <= m["memory_chapters"],
            f"memory_topk={m['memory_topk']} 大于 memory_chapters={m['memory_chapters']}。")

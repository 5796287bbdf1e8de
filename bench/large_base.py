"""What a base of half a billion weights asks of this machine: brought in, one LoRA step, one memory step, 16 tokens.

    OMP_NUM_THREADS=2 python bench/large_base.py [--tokenizer FOLDER] [--out out/large_base] [--quick]

The folder has the shape of Qwen2.5-0.5B and random bfloat16 weights; without --tokenizer its words are made up. Each
part is a command of its own: seconds, peak resident memory (as VmHWM: mapped file pages included) and the peak of its
anonymous memory (sampled every 20 ms). Linux only: it reads /proc. The last line is JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import chain, islice, product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch

from bench.measure import table
from tools.cli import guarded, parse
from tools.words.foreign import byte_letters

SHAPE = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=151936, hidden_size=896,
             intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
             max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True,
             hidden_act="silu", use_sliding_window=False, torch_dtype="bfloat16")
QUICK = dict(vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = ("{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
          "'<|im_end|>' + '\\n' -}}{%- endfor -%}"
          "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}")
EXTRA = [("--tokenizer", {"metavar": "文件夹", "help": "用这里的 tokenizer.json（不写就造一个）"}),
         ("--out", {"default": str(ROOT / "out/large_base"), "metavar": "文件夹", "help": "放在哪里"}),
         ("--quick", {"action": "store_true", "help": "很小的底座，只看能不能跑"})]


def tensors(shape):
    """{name: random bfloat16 tensor} as transformers names them."""
    d, wide, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    kv = d // heads * shape["num_key_value_heads"]
    sizes = {"model.embed_tokens.weight": (shape["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(shape["num_hidden_layers"]):
        inner = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,), "self_attn.q_proj.bias": (d,),
                 "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,), "self_attn.q_proj.weight": (d, d),
                 "self_attn.k_proj.weight": (kv, d), "self_attn.v_proj.weight": (kv, d),
                 "self_attn.o_proj.weight": (d, d), "mlp.gate_proj.weight": (wide, d), "mlp.up_proj.weight": (wide, d),
                 "mlp.down_proj.weight": (d, wide)}
        sizes |= {f"model.layers.{i}.{name}": size for name, size in inner.items()}
    numbers = torch.Generator().manual_seed(0)
    return {name: (torch.randn(size, generator=numbers) * 0.02 + name.endswith("norm.weight")).bfloat16()
            for name, size in sizes.items()}


def made_up_tokenizer(size):
    """tokenizer.json of a byte-level BPE with `size` words, the marks of ChatML last: all pairs of bytes, then
    threes."""
    letters = sorted(byte_letters())
    pairs = [a + b for a, b in product(letters, letters)]
    both = chain(product(letters, letters), product(pairs, letters))
    merges = [list(pair) for pair in islice(both, size - len(letters) - len(MARKS))]
    words = letters + ["".join(pair) for pair in merges]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level,
            "added_tokens": [{"id": len(words) + i, "content": mark, **plain} for i, mark in enumerate(MARKS)],
            "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges}}


def write_folder(folder, shape, tokenizer):
    from safetensors.torch import save_file
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(shape), folder / "model.safetensors", {"format": "pt"})
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(tokenizer, name), folder / name)
    else:
        made = made_up_tokenizer(min(shape["vocab_size"], 151646))
        about = {"eos_token": "<|im_end|>", "chat_template": CHATML}
        (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")       # last: then the folder is whole


def measured(words, errors):
    """One command -> {"seconds", "cpu_seconds", "peak_mb", "anonymous_mb", "load"}; SystemExit when it fails."""
    start, anonymous, peak = time.perf_counter(), 0, 0
    with open(errors, "w") as file:
        process = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=file, stderr=file)
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        memory = memory_of(process.pid)
        anonymous, peak = max(anonymous, memory.get("RssAnon", 0)), max(peak, memory.get("VmHWM", 0))
        time.sleep(0.02)
    if status:
        raise SystemExit(Path(errors).read_text(encoding="utf-8")[-2000:])
    return {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_mb": round(peak * 1024 / 1e6), "anonymous_mb": round(anonymous * 1024 / 1e6),
            "load": round(os.getloadavg()[0], 1)}


def memory_of(pid):
    """{"VmHWM", "RssAnon"} in KiB; {} when it has just ended."""
    try:
        fields = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return {}
    return {words[0][:-1]: int(words[1]) for words in fields if words and words[0] in ("VmHWM:", "RssAnon:")}


def commands(folder, out):
    """{what it is: words of the command}."""
    base, data = out / "base.pkl", out / "rows.jsonl"
    asked, reply = "讲一讲山和水。" * 8, "山在上，水在下。" * 40
    row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]}
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(4)), encoding="utf-8")
    step = ["--pretraining_model_path", base, "--json_data_path", data, "--max_steps", 1, "--batch_size", 1,
            "--max_len", 256, "--accumulation_steps", 1, "--eval_share", 0, "--num_workers", 0, "--out_dir",
            out / "out", "--log_dir", out / "logs", "--log_file", out / "log.txt", "--resume", "none", "--device",
            "cpu", "--replay_share", 0, "--replay_data_path", data]      # no other data: no guard that reads it first
    return {"带入": ["chat_agent/export.py", "--from", "hf", folder, "--output", base],
            "一步 LoRA（256 词元）": ["train_agent/lora_train.py", *step],
            "一步记忆（256 词元）": ["train_agent/memory_train.py", *step],
            "写 16 个词元": ["chat_agent/chat.py", "--model", base, "--prompt", "你好", "--max_new_tokens", 16,
                         "--temperature", 0]}


def main(argv=None):
    _, command = parse(argv, "五亿参数的底座要多少时间和内存？", extra=EXTRA)
    out = Path(command.out).resolve() / ("quick" if command.quick else "full")
    folder, shape = out / "folder", {**SHAPE, **(QUICK if command.quick else {})}
    if not (folder / "config.json").exists():
        write_folder(folder, shape, command.tokenizer)
    weights = (folder / "model.safetensors").stat().st_size
    (out / "base.pkl").unlink(missing_ok=True)
    found = {name: measured(words, out / "last.txt") for name, words in commands(folder, out).items()}
    for one in found.values():
        one["ratio"] = round(one["peak_mb"] * 1e6 / weights, 2)
    print(*table(["", "秒", "CPU 秒", "峰值 MB", "其中匿名 MB", "是权重的几倍", "负载"],
                 [[name, *(one[k] for k in ("seconds", "cpu_seconds", "peak_mb", "anonymous_mb", "ratio", "load"))]
                  for name, one in found.items()]), sep="\n")
    print(json.dumps({"weights_mb": round(weights / 1e6), **found}, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)

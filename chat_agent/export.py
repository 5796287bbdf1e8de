"""A checkpoint in the formats of others, and back.

    python chat_agent/export.py --model out/TinySeek_SFT_final.pkl --to hf --output exported
    python chat_agent/export.py --model out/TinySeek_SFT_final.pkl --to gguf --output exported/tinyseek.gguf
    python chat_agent/export.py --from hf exported --output back.pkl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

from chat_agent.exports.gguf.file import PRECISIONS, side_file, write_gguf
from chat_agent.exports.hf.folder import write_hf
from chat_agent.exports.hf.weights import SECOND_HEAD
from chat_agent.exports.hf.back import read_hf
from chat_agent.exports.merge import merged_payload
from chat_agent.exports.own import write_pkl, write_safetensors
from chat_agent.exports.source import CASTS, read_source
from chat_agent.load import model_paths
from tools.cli import guarded, parse
from tools.errors import UserError

OPTIONS = [
    ("--model", {"metavar": "文件", "help": "要导出的检查点 .pkl"}),
    ("--to", {"choices": ["hf", "gguf", "merged", "safetensors"],
              "help": "hf：transformers 文件夹；gguf：llama.cpp 与 Ollama；merged：把 LoRA 合并成完整的 .pkl；safetensors：只要权重"}),
    ("--from", {"dest": "source", "nargs": 2, "metavar": ("hf", "文件夹"),
                "help": "把 --to hf 导出的文件夹，或下载的 Llama、Mistral、Qwen、MiniMind、GPT-2、DeepSeek 文件夹，变成 .pkl"}),
    ("--output", {"metavar": "路径", "help": "写到哪里：hf 是文件夹，其余是文件"}),
    ("--precision", {"choices": ["f32", "f16", "bf16", "q8_0"],
                     "help": "权重的精度；gguf 可选 f32（默认）f16 q8_0，其余可选 f32 f16 bf16（默认照原样）"}),
]


def main(argv=None):
    manager, options = parse(argv, "导出：把检查点变成 transformers、llama.cpp、Ollama 能用的格式，或带回来", extra=OPTIONS,
                             only_run_keys=True, reads=("save_precision", "out_dir", "name"))
    if options.to and manager.config["name"]:
        options.model = model_paths(options.model, manager.config)[0]
    _check(options)
    precision = options.precision
    if precision is None and "save_precision" in options.overrides:
        wanted = manager.config["save_precision"]
        precision = next(short for short, long in CASTS.items() if long == wanted)
    if options.source:
        path = write_pkl(read_hf(options.source[1]), options.output, precision)
        print(f"已写好 {path}，可用 chat_agent/chat.py --model {path} 对话。")
    else:
        write = {"hf": to_hf, "gguf": to_gguf, "merged": to_merged, "safetensors": to_safetensors}[options.to]
        write(options, precision)


def _check(options):
    """The command makes sense: UserError 2."""
    if bool(options.source) == bool(options.to):
        raise UserError("请写 --to hf|gguf|merged|safetensors 导出，或 --from hf 文件夹 带回，二者选一。")
    if not options.output:
        raise UserError("请用 --output 写明导出到哪里。")
    if options.source and options.source[0] != "hf":
        raise UserError(f"--from 只能带回 hf 文件夹，而不是 {options.source[0]}。")
    if bool(options.model) == bool(options.source):
        raise UserError("--from 不需要 --model。" if options.source else "请用 --model 写明要导出的检查点。")
    allowed = PRECISIONS if options.to == "gguf" else tuple(CASTS)
    if options.precision not in (None, *allowed):
        raise UserError(f"这种格式的 --precision 只能是 {'、'.join(allowed)}，不能是 {options.precision}。")


def to_hf(options, precision):
    source = read_source(options.model, precision)
    name = write_hf(source, options.output)
    print(f"已写好 {options.output}：transformers 的 {name}，加载时不需要 trust_remote_code。")
    if SECOND_HEAD in source.weights:
        print(f"第二个预测头没有现成的位置，单独存于 {Path(options.output) / 'second_head.safetensors'}，带回时会用到。")


def to_gguf(options, precision):
    source = read_source(options.model)
    if source.vocab.dialogue:
        raise UserError("别家的底座请先用 --to hf 导出，再用 llama.cpp 的 convert_hf_to_gguf.py 转换：词表照原样。")
    precision = precision or "f32"
    if precision not in PRECISIONS:
        raise UserError(f"gguf 的精度只能是 {'、'.join(PRECISIONS)}，不能是 {precision}。")
    path, kept = write_gguf(source, options.output, precision)
    modelfile = str(path.with_name("Modelfile"))
    quoted = f'"{modelfile}"' if " " in modelfile else modelfile
    print(f"已写好 {path} 和 {modelfile}。Ollama：ollama create tinyseek -f {quoted}")
    if kept:
        print(f"其中 {len(kept)} 个张量的行宽不是 32 的倍数，保持 f16：{'、'.join(kept[:3])}{' 等' if len(kept) > 3 else ''}。")
    if SECOND_HEAD in source.weights:
        print(f"第二个预测头没有现成的位置，单独存于 {side_file(path)}。")


def to_merged(options, precision):
    path = write_pkl(merged_payload(options.model), options.output, precision)
    print(f"已写好 {path}：完整的模型，不再需要底座和适配器。")


def to_safetensors(options, precision):
    print(f"已写好 {write_safetensors(options.model, options.output, precision)}：只有权重，名字与检查点里相同。")


if __name__ == "__main__":
    guarded(main)

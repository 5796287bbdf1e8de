"""Numbers for models: bits per character, exact answers to the built-in questions, multiple choice.

    python chat_agent/evaluate.py --model out/TinySeek_SFT_final.pkl --task all
    python chat_agent/evaluate.py --model a.pkl --model b.pkl --task bpc --data text.jsonl --every 50

Prints one table with a column per model; the last line of stdout is one JSON object.
"""
import json
import sys
import unicodedata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from chat_agent.evaluation.rows import left_out, looks_like
from chat_agent.load import choose_device, context_of, load
from chat_agent.evaluation.scoring import bits_per_char, exact_scores, mcq_scores
from tools.cli import guarded, parse
from tools.demo_data import HAND, write_demo
from tools.errors import UserError
from tools.formats import BadLines, expand_paths

TASKS = ("bpc", "exact", "mcq")
FITS = {"choice": ("mcq",), "question": ("bpc", "exact"), "rows": ("bpc",)}     # what `all` does with a file that looks like this
OPTIONS = [
    ("--model", {"action": "append", "metavar": "P", "help": "检查点；写几次就比较几个，默认 out_dir 里的 TinySeek_SFT_final.pkl"}),
    ("--task", {"choices": (*TASKS, "all"), "default": "all",
                "help": "bpc 每字比特；exact 内置考题（--data 可换）；mcq 选择题；all 全部（默认）"}),
    ("--data", {"nargs": "+", "metavar": "F", "help": "数据文件（可用通配符）；all 时按内容分给各项，没分到的用内置的：bpc 用预训练数据的留出部分，选择题跳过"}),
    ("--every", {"type": int, "metavar": "N", "help": "只用编号（从 0 数）能被 N 整除的行，即训练时留出的行"}),
    ("--window", {"type": int, "metavar": "N", "help": "模型一次看多少 token，默认与训练时的 max_len 相同；长文用重叠的窗口，每字只算一次"}),
    ("--failures", {"action": "store_true", "help": "列出几道答错的考题"}),
]


def main(argv=None):
    manager, options = parse(argv, "评估：每字比特、内置考题、选择题；可把几个模型放在一张表里比较", extra=OPTIONS, only_run_keys=True)
    for name in ("every", "window"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} 应为不小于 1 的整数。")
    config = manager.config
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    paths = options.model or [str(Path(config["out_dir"]) / "TinySeek_SFT_final.pkl")]
    loaded = [load(path, choose_device(config["device"])) for path in paths]       # all mistakes before any work
    plan = plan_tasks(options, config)
    results = [{"model": path, **evaluate_model(*parts, plan, options, config)} for path, parts in zip(paths, loaded)]
    print(table(columns(results)))
    if options.failures:
        print_failures(results)
    files = {task: {"files": files, "every": every} for task, (files, every) in plan.items()}
    print(json.dumps({"task": options.task, "data": files, "models": results}, ensure_ascii=False))
    return 0


# ---------------------------------------------------------------- what is done with which file

def plan_tasks(options, config):
    """{task: (files, every)} for what was asked; files are there, defaults filled in. UserError 2 where nothing fits."""
    wanted, plan = TASKS if options.task == "all" else (options.task,), {}
    files = expand_paths(options.data) if options.data else []
    for task in wanted:
        fitting = [f for f in files if options.task == task or task in FITS[looks_like(f)]]
        if fitting:
            plan[task] = fitting, options.every or 1
        elif task == "bpc":
            plan[task] = held_out(config["pre"], options.every)
        elif task == "exact":
            plan[task] = [str(write_demo(HAND)["eval"])], options.every or 1
        elif options.task == "mcq":
            raise UserError("选择题没有内置数据，请用 --data 给出文件，每行有 question、A、B、C、D、answer（JSONL 或 CSV）。")
    return plan


def held_out(pre, every):
    """The pre-training rows that training left out: (files, every)."""
    if pre["eval_data_path"]:
        return expand_paths(pre["eval_data_path"]), every or 1
    if pre["json_data_path"] == str(HAND / "demo_pre.jsonl"):
        write_demo(HAND)
    files = expand_paths(pre["json_data_path"])
    every = every or left_out(files, pre["eval_share"], pre["text_field"])
    if not every:
        print("注意：训练时没有留出数据（eval_share 是 0，或数据太少）；下面的比特/字是在训练过的文本上算的。", file=sys.stderr)
    return files, every or 1


def evaluate_model(model, vocab, payload, plan, options, config):
    """All planned tasks for one model -> {"stage", "step", "window", task: figures}."""
    window = options.window or context_of(model, payload)
    if model.config.position == "learned":
        window = min(window, model.config.max_position)
    precision = config["mixed_precision"] if "mixed_precision" in options.overrides else "no"
    likelihood = {"window": window, "precision": "bf16" if precision == "auto" else precision}
    result = {"stage": payload["stage"], "step": payload["step"], "window": window}
    for task, (files, every) in plan.items():
        bad = BadLines(Path(config["log_dir"]) / "bad_lines.jsonl", config["max_bad_share"])
        common = {"every": every, "bad": bad, "progress": True}
        if task == "bpc":
            result[task] = bits_per_char(model, vocab, files, text_field=config["pre"]["text_field"], **likelihood, **common)
        elif task == "exact":
            result[task] = exact_scores(model, vocab, files, **common)
        else:
            result[task] = mcq_scores(model, vocab, files, dialogue=payload["stage"] != "Pre", **likelihood, **common)
        if bad.count:
            print(f"跳过了 {bad.count} 行不能用的数据，见 {bad.log_path}。", file=sys.stderr)
    return result


# ---------------------------------------------------------------- the table

def columns(results):
    """Lines of cells: what is measured, what chance would give, one cell per model."""
    lines = [["指标", "随机水平", *names([r["model"] for r in results])]]
    lines.append(["阶段与步数", "", *(f"{r['stage']} {r['step']}" for r in results)])
    if "bpc" in results[0]:
        lines.append(["每字比特", "", *(f"{r['bpc']['bits_per_char']:.4f}" for r in results)])
        lines.append(["每字节比特", "", *(f"{r['bpc']['bits_per_byte']:.4f}" for r in results)])
        lines.append([f"　共 {results[0]['bpc']['characters']} 字，token 数", "", *(str(r["bpc"]["tokens"]) for r in results)])
    if "exact" in results[0]:
        exact = [r["exact"] for r in results]
        lines.append([f"考题全对（{exact[0]['n']} 题）", "", *(percent(e["overall"]) for e in exact)])
        for task, chance in exact[0]["chance"].items():
            lines.append([f"　{task}", percent(chance), *(percent(e["by_task"][task]) for e in exact)])
    if "mcq" in results[0]:
        mcq = [r["mcq"] for r in results]
        lines.append([f"选择题（{mcq[0]['n']} 题）", percent(mcq[0]["chance"]), *(percent(m["accuracy"]) for m in mcq)])
        lines.append(["　95% 区间", "", *(f"{percent(m['low'])} 至 {percent(m['high'])}" for m in mcq)])
        lines.append(["　与随机相比", "", *(against_chance(m) for m in mcq)])
    return lines


def against_chance(mcq):
    if mcq["low"] > mcq["chance"]:
        return "高于随机"
    return "低于随机" if mcq["high"] < mcq["chance"] else "分不出高低"


def names(paths):
    """Short column titles that differ: the file's name, with its folder where two are alike."""
    stems = [Path(p).stem.removeprefix("TinySeek_") for p in paths]
    return [s if stems.count(s) == 1 else f"{Path(p).parent.name}/{s}" for p, s in zip(paths, stems)]


def percent(share):
    return f"{100 * share:.1f}%"


def table(lines):
    """Cells under each other, the first column to the left, figures to the right; a Chinese character is two cells wide."""
    wide = [max(width(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "─" * (sum(wide) + 2 * (len(wide) - 1))
    rows = ["  ".join([line[0] + " " * (wide[0] - width(line[0])),
                       *(" " * (w - width(cell)) + cell for w, cell in zip(wide[1:], line[1:]))]).rstrip() for line in lines]
    return "\n".join([rows[0], rule, *rows[1:]])


def width(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def print_failures(results):
    for result in results:
        if "exact" in result:
            print(f"\n{result['model']} 答错的题：")
            for f in result["exact"]["failures"]:
                print(f"　[{f['task']}] {f['question']} → {f['reply']}（应为 {f['expected']}）")


if __name__ == "__main__":
    guarded(main)

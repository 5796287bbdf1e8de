"""Numbers for models: bits per character, exact answers to the built-in questions, multiple choice.

    python chat_agent/evaluate.py --model out/TinySeek_SFT_final.pkl --task all
    python chat_agent/evaluate.py --model a.pkl --model b.pkl --task bpc --data text.jsonl --every 50

Prints one table with a column per model; the last line of stdout is one JSON object.
"""
import json
import sys
import unicodedata
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from chat_agent.chat import short_names
from chat_agent.evaluation.own_rows import held_rows, is_built_in, learned
from chat_agent.evaluation.rows import looks_like
from chat_agent.evaluation.scoring import bits_per_char, exact_scores, mcq_scores, paired, world_scores
from chat_agent.evaluation.tool_use import SHARES, tool_scores
from chat_agent.load import choose_device, context_of, load, model_paths, stretch_of
from tools.cli import guarded, parse
from tools.config.keys import STRETCH
from tools.demo.tasks import TASKS as BUILT_IN
from tools.demo.tool_tasks import TITLES, write_tools
from tools.demo_data import demo_home, write_demo
from tools.errors import UserError
from tools.formats import BadLines, expand_paths, fields_of
from tools.reading.hub import local_files
from tools.saving.atomic import write_bytes

TASKS = ("bpc", "exact", "mcq")
EXAMS = ("eval", "phrasings", "outside")       # the files of the built-in world's three scores
TOOL_EXAM = ("tools_eval", "prices", "tools_phrasings")
# What `all` does with a file that looks like this.
FITS = {"choice": ("mcq",), "question": ("bpc", "exact"), "rows": ("bpc",)}
Work = namedtuple("Work", "files every fields")        # rows of which files, and what parse_line is told of them
SURE = 0.05             # a difference between two models that chance makes more often than this is called undecided
READS = ("device", "threads", "out_dir", "name", "log_dir", "cache_dir", "mixed_precision", "max_bad_share",
         "text_field", "columns", "hf_subset", "hf_split", "hf_streaming", *STRETCH)
OPTIONS = [
    ("--model", {"action": "append", "metavar": "P", "help": "检查点；写几次就比较几个，默认 out_dir 里的 TinySeek_SFT_final.pkl"}),
    ("--task", {"choices": (*TASKS, "tools", "all"), "default": "all",
                "help": "bpc 每字比特；exact 内置考题（--data 可换）；mcq 选择题；tools 内置的工具题（单独做）；all 全部（默认）"}),
    ("--data", {"nargs": "+", "metavar": "F", "help": "数据文件（可用通配符、hf:名字），all 时按内容分给各项；"
                "不写则 bpc 用第一个模型训练时留出的行，内置考题只考学过内置数据的模型"}),
    ("--every", {"type": int, "metavar": "N", "help": "只用编号（从 0 数）能被 N 整除的行，即训练时留出的行"}),
    ("--window", {"type": int, "metavar": "N", "help": "模型一次看多少词元，默认与训练时的 max_len 相同；长文用重叠的窗口，每字只算一次"}),
    ("--failures", {"action": "store_true", "help": "列出几道答错的考题"}),
    ("--save", {"metavar": "F", "help": "把每道题和每个模型的回答写进这个新的 .jsonl 文件"}),
]


def main(argv=None):
    manager, options = parse(argv, "评估：每字比特、内置考题、选择题；可把几个模型放在一张表里比较", extra=OPTIONS,
                             only_run_keys=True, reads=READS)
    check(options)
    config = manager.config
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    paths = model_paths(options.model, config)
    stretch = stretch_of(options, config)
    device = choose_device(config["device"])
    loaded = [load(path, device, stretch) for path in paths]       # all mistakes before any work
    runs = [payload["runs"] for _, _, payload in loaded]
    plan = plan_tasks(options, config, runs)
    names, answers = short_names(paths), []
    results = [{"model": path, **evaluate_model(*parts, own, plan, options, config, name, answers)}
               for path, name, parts, own in zip(paths, names, loaded, runs)]
    versus = compared(answers, names)
    examined = options.task in ("all", "exact") and not options.data
    strangers = [name for name, own in zip(names, runs) if examined and is_built_in(own) is False]
    if options.save and not answers:
        print(f"没有逐题的回答，不写 {options.save}：只有考题和选择题有。", file=sys.stderr)
    elif options.save:
        write_bytes(options.save, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers).encode())
        print(f"每道题的回答已写进 {options.save}。", file=sys.stderr)
    print(table(columns(results, names)), *remarks(results, names, strangers, versus), sep="\n")
    if options.failures:
        print_failures(results)
    files = {task: {"files": work.files, "every": work.every} for task, work in plan.items()}
    summary = {"task": options.task, "data": files, "models": results, **({"paired": versus} if versus else {})}
    print(json.dumps(summary, ensure_ascii=False))
    return 0


def check(options):
    """The command makes sense: UserError 2."""
    for name in ("every", "window"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} 应为不小于 1 的整数。")
    if options.save and Path(options.save).exists():
        raise UserError(f"{options.save} 已存在，不会覆盖。请用 --save 换一个文件名。")


# ---------------------------------------------------------------- what is done with which file

def plan_tasks(options, config, runs):
    """{task: Work} for what was asked; files are there, defaults filled in. UserError 2 where nothing fits.

    runs: per model, as `load` gives them. Every model is asked the same: where no data are named, the first model's
    held-out rows.
    """
    if options.task == "tools":
        if options.data:
            raise UserError("工具题是内置的，不能用 --data 换。")
        exam = write_tools(demo_home(config["out_dir"]))
        return {"tools": Work([str(exam[name]) for name in TOOL_EXAM], options.every or 1, None)}
    wanted, plan, files = TASKS if options.task == "all" else (options.task,), {}, []
    every, fields = options.every or 1, fields_of(config["pre"])
    if options.data:
        files = expand_paths(local_files(options.data, {**config["pre"], "cache_dir": config["cache_dir"]}))
    for task in wanted:
        fitting = [f for f in files if options.task == task or task in FITS[looks_like(f)]]
        if fitting:
            plan[task] = Work(fitting, every, fields)
        elif task == "bpc":
            _plan_own_rows(plan, options, config, runs[0])
        elif task == "exact":
            if any(is_built_in(own) is not False for own in runs):
                exams = write_demo(demo_home(config["out_dir"]))
                plan[task] = Work([str(exams[name]) for name in EXAMS if name in exams], every, None)
        elif options.task == "mcq":
            raise UserError("选择题没有内置数据，请用 --data 给出文件，每行有 question、A、B、C、D、answer（JSONL 或 CSV）。")
    return plan


def _plan_own_rows(plan, options, config, runs):
    try:
        run = runs[-1] if runs else {}
        files, every = held_rows(run, config["cache_dir"])
    except UserError as error:
        if options.task == "bpc":
            raise
        print(f"不算每字比特：{error}", file=sys.stderr)
        return
    plan["bpc"] = Work(files, options.every or every, fields_of(run))


def evaluate_model(model, vocab, payload, runs, plan, options, config, name, answers):
    """All planned tasks for one model -> {"stage", "step", "window", task: figures}; every answer goes to `answers`."""
    window = options.window or context_of(model, payload)
    if model.config.position == "learned":
        window = min(window, model.config.max_position)
    precision = config["mixed_precision"] if "mixed_precision" in options.overrides else "no"
    likelihood = {"window": window, "precision": "bf16" if precision == "auto" else precision}
    result = {"stage": payload["stage"], "step": payload["step"], "window": window}
    for task, (files, every, fields) in plan.items():
        if task == "exact" and not options.data and is_built_in(runs) is False:        # 0 % would say nothing
            continue
        bad, mine = BadLines(Path(config["log_dir"]) / "bad_lines.jsonl", config["max_bad_share"]), []
        common = {"every": every, "bad": bad, "progress": True}
        if task == "bpc":
            result[task] = bits_per_char(model, vocab, files, text_field=fields, **likelihood, **common)
        elif task == "exact":
            exam = exact_scores if options.data else world_scores
            asked = files if options.data else dict(zip(EXAMS, files))
            result[task] = exam(model, vocab, asked, answers=mine, text_field=fields, acts=payload.get("acts", ()),
                                **common)
        elif task == "tools":
            result[task] = tool_scores(model, vocab, dict(zip(TOOL_EXAM, files)),
                                       payload.get("acts", ()), every, mine)
        else:
            dialogue = payload["stage"] != "Pre"
            result[task] = mcq_scores(model, vocab, files, dialogue=dialogue, answers=mine, **likelihood, **common)
        result[task]["seen"] = learned(runs, files, every, config["cache_dir"])
        answers += [{"model": name, "kind": task, **one} for one in mine]
        if bad.count:
            print(f"跳过了 {bad.count} 行不能用的数据，见 {bad.log_path}。", file=sys.stderr)
    return result


def compared(answers, names):
    """{task: paired figures} of two models that answered the same questions."""
    found = {}
    for kind in ("exact", "mcq"):
        marks = [[one["right"] for one in answers if (one["model"], one["kind"]) == (name, kind)] for name in names]
        if len(names) == 2 and all(marks):
            found[kind] = paired(*marks)
    return found


# ---------------------------------------------------------------- the table

NONE = "不适用"


def columns(results, names):
    """Lines of cells: what is measured, what chance would give, one cell per model."""
    lines = [["指标", "随机猜测", *names], ["阶段与步数", "", *(f"{r['stage']} {r['step']}" for r in results)]]
    if "bpc" in results[0]:
        lines.append(["每字比特", "", *(f"{r['bpc']['bits_per_char']:.4f}" for r in results)])
        lines.append(["每字节比特", "", *(f"{r['bpc']['bits_per_byte']:.4f}" for r in results)])
        size = results[0]["bpc"]["characters"]
        lines.append([f"　共 {size} 字，词元数", "", *(str(r["bpc"]["tokens"]) for r in results)])
    asked = next((r["exact"] for r in results if "exact" in r), None)
    if asked:
        exact = [r.get("exact") for r in results]
        lines.append([f"考题全对（{asked['n']} 题）", "", *(percent(e["overall"]) if e else NONE for e in exact)])
        for task, chance in asked["chance"].items():
            shares = (percent(e["by_task"][task]) if e else NONE for e in exact)
            lines.append([f"　{title_of(task)}", percent(chance), *shares])
        lines += beyond_contents(asked, exact)
    if "tools" in results[0]:
        lines += tool_lines([r["tools"] for r in results])
    if "mcq" in results[0]:
        mcq = [r["mcq"] for r in results]
        lines.append([f"选择题（{mcq[0]['n']} 题）", percent(mcq[0]["chance"]), *(percent(m["accuracy"]) for m in mcq)])
        lines.append(["　95% 区间", "", *(f"{percent(m['low'])} 至 {percent(m['high'])}" for m in mcq)])
        lines.append(["　与随机相比", "", *(against_chance(m) for m in mcq)])
    return lines


def tool_lines(scores):
    """Lines of the tool tasks: the final answers, and in how many the right tool was called with the right
    arguments."""
    yield [f"工具题答对（{scores[0]['n']} 题）", "", *(percent(s["overall"]) for s in scores)]
    for task in scores[0]["by_task"]:
        yield [f"　{TITLES[task]}：工具 / 参数 / 答案", "",
               *(" / ".join(percent(s["by_task"][task][name]) for name in SHARES) for s in scores)]
    yield ["　算术题不给工具", "", *(percent(s["off"]) for s in scores)]
    yield [f"　换一种问法（{scores[0]['phrasings']['n']} 题）", "", *(percent(s["phrasings"]["overall"]) for s in scores)]
    yield ["　不该用而用了", "", *(percent(s["needless"]) for s in scores)]
    yield ["　其中不用工具的题答对", "", *(percent(s["ordinary"]) for s in scores)]


def beyond_contents(asked, exact):
    """Lines of the other two scores of the built-in world, and of false refusals. asked: the scores of one model that
    has them."""
    def cells(of):
        return (percent(of(e)) if e else NONE for e in exact)
    if "phrasings" in asked:
        yield [f"换一种问法（{asked['phrasings']['n']} 题）", "", *cells(lambda e: e["phrasings"]["overall"])]
        for task in asked["phrasings"]["by_task"]:
            yield [f"　{title_of(task)}", "", *cells(lambda e: e["phrasings"]["by_task"][task])]
    if "outside" in asked:
        yield [f"题外话答得体（{asked['n_outside']} 题）", "", *cells(lambda e: e["outside"])]
    if any(e and e["refusals"] for e in exact):
        yield ["　会的题却说不会", "", *cells(lambda e: e["refusals"])]


def remarks(results, names, strangers, versus):
    """What a reader of the table has to know. strangers: models that the built-in questions say nothing about."""
    for name, result in zip(names, results):
        seen = sorted({file for task in TASKS for file in result.get(task, {}).get("seen", ())})
        if seen:
            files = "、".join(Path(file).name for file in seen)
            yield f"注意：{name} 训练时见过 {files} 里的行，分数偏乐观。要看真本事，请用它没见过的数据（或 --every 留出的行）。"
    for name in strangers:
        yield f"内置考题不适用于 {name}：它学的不是内置数据。自己的考题用 --data 给出。"
    for kind, found in versus.items():
        better = names[0 if found["first"] > found["second"] else 1]
        verdict = f"{better} 更好" if found["p"] < SURE else "差别可能只是偶然"
        yield (f"{'考题' if kind == 'exact' else '选择题'}逐题比较：都对 {found['both']}，只有 {names[0]} 对 {found['first']}，"
               f"只有 {names[1]} 对 {found['second']}，都错 {found['neither']}：{verdict}（p = {found['p']:.2g}）。")


def title_of(task):
    return BUILT_IN[task].title if task in BUILT_IN else "题外话" if task == "outside" else task


def against_chance(mcq):
    if mcq["low"] > mcq["chance"]:
        return "高于随机"
    return "低于随机" if mcq["high"] < mcq["chance"] else "分不出高低"


def percent(share):
    return f"{100 * share:.1f}%"


def table(lines):
    """Cells under each other, the first column to the left, figures to the right; a Chinese character has two cells."""
    wide = [max(width(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "─" * (sum(wide) + 2 * (len(wide) - 1))
    rows = []
    for first, *others in lines:
        cells = [first + " " * (wide[0] - width(first)), *(" " * (w - width(c)) + c for w, c in zip(wide[1:], others))]
        rows.append("  ".join(cells).rstrip())
    return "\n".join([rows[0], rule, *rows[1:]])


def width(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def print_failures(results):
    for result in results:
        if "exact" in result:
            print(f"\n{result['model']} 答错的题：")
            for f in result["exact"]["failures"]:
                print(f"　[{title_of(f['task'])}] {f['question']} → {f['reply']}（应为 {f['expected']}）")


if __name__ == "__main__":
    guarded(main)

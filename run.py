"""From nothing to a chatbot that answers: the whole pipeline in order.

    python run.py                  the steps that README's scores took: about 12 minutes on two CPU cores
    python run.py --minutes 60     by the clock: more training, a better model
    python run.py --quick          a smoke run of under a minute
    python run.py --open           with a page that shows how it learns to speak
    python run.py --with adapters  afterwards: three LoRA specialists, a prefix, a memory, and a gate that picks among
    them

Run it again and it goes on where it stopped. What it measured is in out/report.json.
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()        # first: importing torch takes seconds

import torch

from chat_agent.load import load
from chat_agent.samples import sample_conversation
from chat_agent.evaluation.rows import left_out
from chat_agent.evaluation.scoring import bits_per_char, exact_scores, world_scores
from tools.cli import guarded, parse
from tools.checkpoint import final_name, read_checkpoint, read_pair
from tools.config.stages import TABLE
from tools.config_manager import ROOT, ConfigManager, fingerprint
from tools.demo.tool_tasks import TITLES
from tools.demo_data import TASKS, write_demo
from tools.errors import UserError
from tools.formats import fields_of
from tools.reading.hub import local_files
from tools.plot import draw_plt
from tools.process.page import page_beside
from tools.report import report_of
from tools.saving.atomic import CheckpointError, finite, write_bytes
from tools.saving.progress import Progress
from train_agent.demo_specialists import titles, train_specialists
from train_agent.trainers.build_stage import builder
from train_agent.trainers.hardware import machine
from train_agent.trainers.running.diary import OpenedLoop, check_up
from train_agent.trainers.running.minutes import EPOCHS, timed_stage
from train_agent.trainers.run_stage import asked

MINUTES = 12
EXTRA = [("--minutes", {"type": float, "metavar": "N", "help": "总时长（分钟）。不写就走完定好的步数，两个 CPU 核心上约 12 分钟"}),
         ("--quick", {"action": "store_true", "help": "一分钟以内的试跑：只确认每一步都能工作"}),
         ("--with", {"dest": "extras", "choices": ["adapters"], "help": "adapters：再训练三个 LoRA、前缀、记忆和选择门"})]
TAKES = {"data": 7, "score_pre": 15, "score_sft": 25, "report": 5}      # seconds, on the machine of README
AROUND = 15          # seconds that a training takes beside its time: data, vocabulary, measuring its steps
FIXED = sum(TAKES.values()) + 2 * AROUND
FIXED_SHARE = 0.35   # of a short run at most this share goes to what is no training
QUICK_SHARE = 0.3    # of TAKES and AROUND, in a smoke run
SHARES = {"pre": 0.35, "sft": 0.65}
STEPS = {"pre": 900, "sft": 1860}    # the plan of work where no minutes are asked for, and how many are usual a minute,
USUAL_STEPS = 260    # in the run whose scores README tells; for the preset with these keys as they are:
USUAL = ("n_layer", "n_head", "d_model", "hidden", "other_experts", "keep", "max_len", "batch_size",
         "accumulation_steps", "json_data_path")
SLOW, TELLING = 0.7, 30      # of USUAL_STEPS: fewer are told, by trainings of so many seconds at least
PATIENCE = 5         # times the usual minutes: no machine is kept longer by the plan
CONVERSATIONS = [["你好", "你是谁？", "34加57等于几？", "把“山水花”倒过来写"], ["我要买三斤苹果和两袋大米", "今天星期三，五天后是星期几？"],
                 ["我叫林小雨", "给“高兴”找一个反义词", "我叫什么名字？"]]


def demo_data(options):
    """Write the built-in world where the configuration asks for it; {} when the user brought data of their own."""
    path = options["json_data_path"]
    if isinstance(path, str) and Path(path).name == "demo_pre.jsonl":
        return write_demo(Path(path).parent)
    return {}


def own_base(options, out):
    """The model that SFT starts from: of a run with a name the one in its folder `out`, unless the configuration names
    another."""
    base = options["pretraining_model_path"]
    return str(out / Path(base).name) if base and Path(base).parent == Path(options["out_dir"]) else base


def plan_of(seconds, options, quick, extras):
    """What Progress will be asked for: (name, title, about how many seconds or None)."""
    share, named = QUICK_SHARE if quick else 1, any(one["max_steps"] for one in options.values())
    steps = [("data", "准备数据", TAKES["data"] * share)]
    for name in SHARES:
        training = None if named else seconds * SHARES[name] + AROUND * share
        steps += [(name, TABLE[name].title, training), (f"score_{name}", scoring(name), TAKES[f"score_{name}"] * share)]
    others = [(name, title, None) for name, title in titles().items()] if extras else []
    return [*steps, *others, ("report", "写报告", TAKES["report"] * share)]


def usual_ones(options):
    """{stage: whether the model and the data are those whose scores README tells}"""
    preset = ConfigManager(preset="tiny")
    return {name: all(one[key] == usual[key] for key in USUAL)
            for name, one in options.items() for usual in [preset.stage(name)]}


def planned(name, steps, seconds, whole):
    """The steps to take on a machine that makes `steps` in `seconds`: those, or the `whole` plan; and a line where
    fewer fit into the time than README's scores took, else None."""
    taken, rate = min(STEPS[name], PATIENCE * steps) if whole else steps, steps / seconds * 60
    if rate >= SLOW * USUAL_STEPS or not whole and seconds < TELLING:
        return taken, None
    if whole:
        fewer = "" if taken == STEPS[name] else f"（定好的是 {STEPS[name]:,} 步，太慢，只走这些，分数会比 README 的低）"
        then = f"走完 {taken:,} 步约要 {math.ceil(taken / rate)} 分钟{fewer}。只想训一会儿，就写 --minutes {MINUTES}。"
    else:
        then = ("步数少，分数会比 README 的低。"
                f"要走到同样多的步，就不写 --minutes，约要 {math.ceil(MINUTES * USUAL_STEPS / rate)} 分钟。")
    return taken, f"这里每分钟约 {max(1, round(rate))} 步，README 里的那次是 {USUAL_STEPS} 步：{then}"


def train(name, options, seconds, whole, usual):
    """Train one stage for so many seconds, for the steps that the configuration names, or, where the `whole` plan is
    to be made, for those of the plan. usual: whether README's scores are to be expected."""
    checked = check_up(options)
    seconds = None if options["max_steps"] else seconds
    timed = {**options, "max_epochs": EPOCHS, "minutes": seconds and (None if whole else round(seconds / 60, 3))}

    def chosen(steps):
        taken, told = planned(name, steps, seconds, whole)
        if told and usual:
            print(told, flush=True)
        return taken
    stage = timed_stage(builder(name), timed, seconds, chosen)
    if name == "sft":
        print("损失会先跳高一截再降下来，这是正常的：从这里起只有回答计入损失，问答的格式也是第一次见。", flush=True)
    loop = OpenedLoop(stage, checked, ahead=False)           # its speed has just been measured
    return {"metrics": loop.run(), "steps": loop.step, "tokens": loop.tokens, "seconds": round(loop.seconds, 1)}


def taken_over(path):
    """What `train` would have said about a checkpoint that is there already."""
    try:
        payload, state = read_pair(path)
    except CheckpointError:                                  # a .pkl of somebody else, our .state beside it
        payload, state = read_checkpoint(path), None
    return {"metrics": payload["metrics"], "steps": payload["step"], "tokens": state and state["tokens"],
            "seconds": state and state["seconds"]}


def score(path, paths, options, quick):
    """Held-out questions of the built-in world, and the held-out text of pre-training, for one checkpoint."""
    model, vocab, payload = load(path)
    exams = paths if payload["stage"] != "Pre" else {"eval": paths["eval"]} if paths else {}
    exact = world_scores(model, vocab, exams, every=20 if quick else 1, progress=True,
                         acts=payload["acts"]) if paths else None
    text = local_files(options["eval_data_path"] or options["json_data_path"], options)
    fields = fields_of(options)
    every = 1 if options["eval_data_path"] else left_out(text, options["eval_share"], fields) or 1
    return {
        "exact": exact, "bits_per_char": bits_per_char(model, vocab, text, every=every * (10 if quick else 1),
                                                       text_field=fields)["bits_per_char"]}


def scoring(name):
    return f"打分（{TABLE[name].title}后）"


def answered(path, questions):
    """Share of a specialist's held-out questions that are answered exactly."""
    model, vocab, _ = load(path)
    return exact_scores(model, vocab, str(questions))["overall"]


def print_scores(before, after):
    """One line per task: before SFT, after SFT, the same asked in other words, what guessing gets."""
    print(f"\n{'SFT 前':>7} {'SFT 后':>8} {'换一种问法':>6} {'随机猜测':>5}   任务")
    reworded, tools = after["phrasings"], after.get("tools")
    for task, value in sorted(after["by_task"].items(), key=lambda item: item[1]):
        print(f"{before['by_task'][task]:>9.1%} {value:>10.1%} {reworded['by_task'].get(task, 0):>11.1%} "
              f"{after['chance'][task]:>9.1%}   {TASKS[task].title}")
    print(f"{before['overall']:>9.1%} {after['overall']:>10.1%} {reworded['overall']:>11.1%} {'':>9}   全部")
    if tools:
        print_tool_scores(tools)
    print(f"内容没见过的 {after['n']} 题答对 {after['overall']:.1%}；问法没见过的 {reworded['n']} 题答对 {reworded['overall']:.1%}；"
          f"题外话 {after['n_outside']} 句，{after['outside']:.1%} 答得体或老实说不会\n")


def print_tool_scores(tools):
    reworded = tools["phrasings"]
    for task, found in tools["by_task"].items():
        print(f"{'':>9} {found['answer']:>10.1%} {reworded['by_task'][task]['answer']:>11.1%} {'':>9}   "
              f"{TITLES[task]}（用工具）")
    print(f"{'':>9} {tools['overall']:>10.1%} {reworded['overall']:>11.1%} {'':>9}   用工具的全部\n"
          f"给了工具而用不着时，叫了 {tools['needless']:.1%}；工具收走，算术题答对 {tools['off']:.1%}")


def converse(path, conversations, turns=None):
    """Hold these conversations, of each the first so many turns, and print them; -> [[(question, reply), ...], ...]"""
    model, vocab, _ = load(path)
    spoken = [sample_conversation(model, vocab, questions[:turns]) for questions in conversations]
    for pairs in spoken:
        print("\n".join(f"  你：{question}\n小寻：{reply}" for question, reply in pairs) + "\n")
    return spoken


def write_report(out, options, progress, done, samples, extras):
    """out/report.json; -> its path."""
    report = {"machine": machine.describe(machine.choose_device(options["pre"]["device"])), "config": options,
              "seconds": progress.data["seconds"], "tokens_seen": {n: d["tokens"] for n, d in done.items()},
              "steps": {n: d["steps"] for n, d in done.items()}, "losses": {n: d["metrics"] for n, d in done.items()},
              "bits_per_char": {n: d["score"]["bits_per_char"] for n, d in done.items()},
              "scores": {n: d["score"]["exact"] for n, d in done.items()}, "samples": samples,
              "peak_rss_mb": machine.peak_memory_mb(), **extras}
    path = out / "report.json"
    write_bytes(path, json.dumps(finite(report), ensure_ascii=False, indent=1, allow_nan=False).encode())
    return path


def main(argv=None):
    torch.multiprocessing.freeze_support()
    manager, command = parse(argv, "从数据到对话，一条命令走完全程（默认用预设 tiny）。", extra=EXTRA, usual="tiny")
    options = {name: manager.stage(name) for name in SHARES}
    if command.minutes is not None and command.minutes <= 0:
        raise UserError(f"--minutes 应大于 0，而不是 {command.minutes:g}。")
    if asked(options["pre"]):
        raise UserError(f"--{asked(options['pre'])} 只看一个阶段：请用 python train_agent/pre_train.py 或 sft_train.py。")
    out = Path(options["pre"]["out_dir"], options["pre"]["name"] or "")
    options["sft"]["pretraining_model_path"] = own_base(options["sft"], out)
    limit = 60 * (command.minutes or MINUTES)
    seconds = 12 if command.quick else max(10, limit - min(FIXED, FIXED_SHARE * limit))
    if command.quick:
        print("试跑：每一步只做几秒，确认都能工作；模型还不会说话。要会说话的模型，请去掉 --quick。")

    with page_beside(options["pre"], out):
        pipeline(manager, command, options, out, seconds)


def pipeline(manager, command, options, out, seconds):
    """The whole way, step by step; what an earlier start has done is skipped."""
    key = {**{name: fingerprint(one) for name, one in options.items()}, "quick": command.quick,
           "minutes": command.minutes}
    plan = plan_of(seconds, options, command.quick, command.extras)
    usual = usual_ones(options)
    whole = not (command.quick or command.minutes) and all(usual.values())
    progress, done = Progress(out, key, options["pre"]["resume"] == "none", plan, () if whole else tuple(SHARES)), {}
    paths = progress.step("data", "准备数据", lambda: demo_data(options["pre"]))
    for name in SHARES:
        base, final = options[name]["pretraining_model_path"], out / final_name(TABLE[name].label)
        done[name] = progress.once(
            name, TABLE[name].title, lambda: train(name, options[name], seconds * SHARES[name], whole, usual[name]),
            made=final, needs=[base] if base else [], taken_over=taken_over)
        done[name]["score"] = progress.once(f"score_{name}", scoring(name),
                                            lambda: score(final, paths, options["pre"], command.quick), needs=[final])
        if options[name]["logging_steps"]:
            draw_plt(name, options[name]["log_file"], options[name]["log_dir"])
    if paths:
        print_scores(done["pre"]["score"]["exact"], done["sft"]["score"]["exact"])
    samples = converse(final, CONVERSATIONS[:1] if command.quick else CONVERSATIONS, 1 if command.quick else None)
    extras = train_specialists(manager, progress, answered, final, command.quick) if command.extras else {}
    reported(progress, out, options, done, samples, extras)


def reported(progress, out, options, done, samples, extras):
    """The last step: the reports, and where to go from here."""
    def write():
        report = write_report(out, options, progress, done, samples, extras)
        return report_of(options["sft"]) or report
    report, final = progress.step("report", "写报告", write), out / final_name(TABLE["sft"].label)
    chosen = f" --model {final}" if final.parent != ROOT / "out" else ""
    progress.say("report", f"全部做完。报告：{report}；聊天：python chat_agent/chat.py{chosen}")
    print(f"""
报告：{report}（用浏览器打开）
曲线：{options["sft"]["log_dir"]}
在终端里聊天：python chat_agent/chat.py{chosen}
在网页里聊天：python chat_agent/serve.py{chosen}""")


if __name__ == "__main__":
    guarded(main)

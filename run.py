"""From nothing to a chatbot that answers: the whole pipeline in order.

    python run.py                  about ten minutes on two CPU cores
    python run.py --minutes 30     more training, a better model
    python run.py --quick          a smoke run of under a minute
    python run.py --with adapters  afterwards: three LoRA specialists, a prefix, a memory, and a gate that picks among them

Run it again and it goes on where it stopped. What it measured is in out/report.json.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools.process.signals import end_on_signals, leave_if_heard

if __name__ == "__main__":
    end_on_signals()        # first: importing torch takes seconds

import torch

from chat_agent.load import load
from chat_agent.samples import sample_conversation
from chat_agent.evaluation.rows import left_out
from chat_agent.evaluation.scoring import bits_per_char, exact_scores
from tools.cli import guarded, parse
from tools.config_manager import fingerprint
from tools.demo_data import write_demo
from tools.errors import UserError
from tools.formats import fields_of
from tools.reading.hub import local_files
from tools.plot import draw_plt
from tools.saving.archive import read_json, write_json
from train_agent.demo_specialists import train_specialists
from train_agent.trainers.hardware import machine
from train_agent.trainers.running.diary import OpenedLoop, check_up
from train_agent.trainers.trying.step_time import seconds_per_step
from train_agent.trainers.pre_training import build_stage as pre_stage
from train_agent.trainers.sft_training import build_stage as sft_stage
from train_agent.trainers.run_stage import asked

EXTRA = [("--minutes", {"type": float, "default": 10.0, "metavar": "N", "help": "总时长（分钟），默认 10"}),
         ("--quick", {"action": "store_true", "help": "一分钟以内的试跑：只确认每一步都能工作"}),
         ("--with", {"dest": "extras", "choices": ["adapters"], "help": "adapters：再训练三个 LoRA、前缀、记忆和选择门"})]
FIXED = 40           # seconds that go to data, vocabulary, measuring, scoring and drawing
SHARES = {"pre": 0.4, "sft": 0.6}
TITLES = {"pre": "预训练", "sft": "指令微调（SFT）"}
CONVERSATIONS = [["你好", "你是谁？", "34加57等于几？", "把“山水花”倒过来写"], ["我要买三斤苹果和两袋大米", "今天星期三，五天后是星期几？"],
                 ["我叫林小雨", "给“高兴”找一个反义词", "我叫什么名字？"]]


class Progress:
    """What is done already, in out/progress.json: a second start skips it. Another configuration starts over."""

    def __init__(self, out_dir, key, afresh=False):
        self.path = Path(out_dir) / "progress.json"
        self.data = {"key": key, "steps": {}, "results": {}, "seconds": {}}
        found = read_json(self.path) if self.path.exists() and not afresh else self.data
        if found["key"] == key:
            self.data = found

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.data)

    def once(self, name, title, work):
        """The result of work(), kept from an earlier start if that got so far."""
        if name in self.data["results"]:
            print(f"✓ {title}：上次已完成，跳过。")
            return self.data["results"][name]
        print(f"▶ {title}", flush=True)
        start = time.time()
        self.data["results"][name] = work()
        self.data["seconds"][name] = round(time.time() - start, 1)
        self.save()
        leave_if_heard()
        return self.data["results"][name]


def demo_data(options):
    """Write the built-in world where the configuration asks for it; {} when the user brought data of their own."""
    path = options["json_data_path"]
    if isinstance(path, str) and Path(path).name == "demo_pre.jsonl":
        return write_demo(Path(path).parent)
    return {}


def own_base(options, out):
    """The model that SFT starts from: of a run with a name the one in its folder `out`, unless the configuration names another."""
    base = options["pretraining_model_path"]
    return str(out / Path(base).name) if base and Path(base).parent == Path(options["out_dir"]) else base


def train(name, build, options, budget, progress):
    """Train one stage for `budget` seconds. The number of steps is fixed at the first start and kept for every resume."""
    checked = check_up(options)
    stage = build({**options, "max_epochs": 1000})          # the clock ends it, not the data
    steps = progress.data["steps"]
    if name not in steps:
        steps[name] = options["max_steps"] or max(4, int(budget / seconds_per_step(stage)))
        progress.save()
    stage.options["max_steps"] = steps[name]
    loop = OpenedLoop(stage, checked, ahead=False)           # its speed has just been measured
    return {"metrics": loop.run(), "steps": loop.step, "tokens": loop.tokens, "seconds": round(loop.seconds, 1)}


def score(path, paths, options, quick):
    """Held-out questions of the built-in world, and the held-out text of pre-training, for one checkpoint."""
    model, vocab, _ = load(path)
    exact = exact_scores(model, vocab, paths["eval"], every=20 if quick else 1, progress=True) if paths else None
    text = local_files(options["eval_data_path"] or options["json_data_path"], options)
    fields = fields_of(options)
    every = 1 if options["eval_data_path"] else left_out(text, options["eval_share"], fields) or 1
    return {"exact": exact, "bits_per_char": bits_per_char(model, vocab, text, every=every * (10 if quick else 1), text_field=fields)["bits_per_char"]}


def answered(path, questions):
    """Share of a specialist's held-out questions that are answered exactly."""
    model, vocab, _ = load(path)
    return exact_scores(model, vocab, str(questions))["overall"]


def print_scores(before, after):
    """One line per task: before SFT, after SFT, what guessing gets."""
    print(f"\n{'SFT 前':>7} {'SFT 后':>8} {'瞎猜':>7}   任务")
    for task, value in sorted(after["by_task"].items(), key=lambda item: item[1]):
        print(f"{before['by_task'][task]:>9.1%} {value:>10.1%} {after['chance'][task]:>9.1%}   {task}")
    print(f"{before['overall']:>9.1%} {after['overall']:>10.1%} {'':>9}   全部 {after['n']} 题，内容在训练时都没有出现过\n")


def converse(path):
    model, vocab, _ = load(path)
    spoken = [sample_conversation(model, vocab, questions) for questions in CONVERSATIONS]
    for pairs in spoken:
        print("\n".join(f"  你：{question}\n小寻：{reply}" for question, reply in pairs) + "\n")
    return spoken


def write_report(out, options, progress, done, samples, extras):
    scores = {name: part["score"]["exact"] for name, part in done.items()}
    report = {"machine": machine.describe(machine.choose_device(options["pre"]["device"])), "config": options,
              "seconds": progress.data["seconds"], "tokens_seen": {n: d["tokens"] for n, d in done.items()},
              "steps": {n: d["steps"] for n, d in done.items()}, "losses": {n: d["metrics"] for n, d in done.items()},
              "bits_per_char": {n: d["score"]["bits_per_char"] for n, d in done.items()}, "scores": scores, "samples": samples,
              "peak_rss_mb": machine.peak_memory_mb(), **extras}
    (out / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")


def main(argv=None):
    torch.multiprocessing.freeze_support()
    argv = list(sys.argv[1:] if argv is None else argv)
    built_in = [] if any(word.startswith(("--preset", "--config")) for word in argv) else ["--preset", "tiny"]
    manager, command = parse(argv + built_in, "从数据到对话，一条命令走完全程（默认用预设 tiny）。", extra=EXTRA)
    options = {name: manager.stage(name) for name in SHARES}
    if asked(options["pre"]):
        raise UserError(f"--{asked(options['pre'])} 只看一个阶段：请用 python train_agent/pre_train.py 或 sft_train.py。")
    out = Path(options["pre"]["out_dir"], options["pre"]["name"] or "")
    options["sft"]["pretraining_model_path"] = own_base(options["sft"], out)
    budget = 12 if command.quick else max(10, command.minutes * 60 - FIXED)
    print("▶ 准备数据")
    paths = demo_data(options["pre"])
    key = json.dumps([*map(fingerprint, options.values()), command.quick, command.minutes], sort_keys=True)
    progress, done = Progress(out, key, afresh=options["pre"]["resume"] == "none"), {}
    for name, build, label in (("pre", pre_stage, "Pre"), ("sft", sft_stage, "SFT")):
        final = out / f"TinySeek_{label}_final.pkl"
        done[name] = progress.once(name, TITLES[name], lambda: train(name, build, options[name], budget * SHARES[name], progress))
        done[name]["score"] = progress.once(f"score_{name}", f"打分（{TITLES[name]}后）", lambda: score(final, paths, options["pre"], command.quick))
        if options[name]["logging_steps"]:
            draw_plt(name, options[name]["log_file"], options[name]["log_dir"])
    if paths:
        print_scores(done["pre"]["score"]["exact"], done["sft"]["score"]["exact"])
    samples = converse(final)
    if command.quick:
        print("\n（--quick 只训练了几秒，还说不成话；要会说话的模型，请去掉它再运行。）")
    extras = train_specialists(manager, progress, answered, final, command.quick) if command.extras else {}
    write_report(out, options, progress, done, samples, extras)
    print(f"\n报告 {out / 'report.json'}\n曲线 {options['sft']['log_dir']}\n接着聊：python chat_agent/chat.py")


if __name__ == "__main__":
    guarded(main)

"""Talk to a model in the terminal, or get one reply.

    python chat_agent/chat.py
    python chat_agent/chat.py --model out/TinySeek_SFT_final.pkl --prompt 你好
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from chat_agent.acted import acted
from tools.acting.toolbox import toolbox
from chat_agent.load import context_of, load, model_paths, stretch_of, talk_of
from chat_agent.session import Session, crowded, tools_size
from chat_agent.terminal.commands import Commands
from chat_agent.terminal.shown import remarks, show, thin
from chat_agent.terminal.typing import LEAVE, Keyboard
from model.sampling import DEFAULTS, RANGES
from tools.cli import guarded, parse
from tools.config.stages import made_by
from tools.config.keys import STRETCH
from tools.errors import UserError
from tools.process.signals import ctrl_c_interrupts
from tools.template import THINKING

READS = ("device", "threads", "out_dir", "name", *STRETCH)
OPTIONS = [
    ("--model", {"action": "append", "metavar": "文件",
                 "help": "模型 .pkl，任何阶段的都行；写几次就让几个模型并排回答（默认 out/TinySeek_SFT_final.pkl）"}),
    ("--prompt", {"metavar": "文字", "help": "只回答这一句：标准输出里只有回答"}),
    ("--system", {"metavar": "文字", "help": "系统提示，放在对话最前面"}),
    ("--max_new_tokens", {"type": int, "metavar": "数", "help": "一次回答最多多少个词元（256）"}),
    ("--temperature", {"type": float, "metavar": "数", "help": "0 = 总取最可能的；越大越随意，常用 0.7（0）"}),
    ("--top_k", {"type": int, "metavar": "数", "help": "只在最可能的 k 个里选，0 = 不限（0）"}),
    ("--top_p", {"type": float, "metavar": "数", "help": "只在合计概率达到 p 的最可能的几个里选（1.0）"}),
    ("--min_p", {"type": float, "metavar": "数", "help": "去掉概率不到最可能者 p 倍的（0）"}),
    ("--repetition_penalty", {"type": float, "metavar": "数", "help": "大于 1 时少用回答里已有的词（1.0）"}),
    ("--frequency_penalty", {"type": float, "metavar": "数", "help": "大于 0 时，回答里出现过的词每多一次就更少用（0）"}),
    ("--presence_penalty", {"type": float, "metavar": "数", "help": "大于 0 时，少用回答里出现过的词，不论几次（0）"}),
    ("--no_repeat_ngram", {"type": int, "metavar": "数", "help": "回答里不重复任何 n 个连续的词元，0 = 不限（0）"}),
    ("--stop", {"action": "append", "metavar": "文字", "help": "回答里出现这段文字就停在它前面；可写几次"}),
    ("--seed", {"type": int, "metavar": "数", "help": "随机种子；同一种子回答相同"}),
    ("--thinking", {"choices": THINKING, "metavar": "|".join(THINKING),
                    "help": "回答前先想：on 先想，off 不想，auto 由模型定（auto；要学过思考的模型）"}),
    ("--show_thinking", {"action": "store_true", "help": "把思考也显示出来（默认只说想了多少字）"}),
    ("--tools", {"nargs": "*", "metavar": "名字",
                 "help": "让学过工具的模型用这些工具：calculate calendar convert（不写名字就是这些），自己的 .py 文件（里面的函数），供查找的 .jsonl、.txt 文件"}),
    ("--context", {"type": int, "metavar": "数", "help": "对话最多占多少个词元，更早的整轮先忘掉（默认为训练时的 max_len）"}),
    ("--stats", {"action": "store_true", "help": "每次回答后显示长度、速度、上下文用量"}),
    ("--no_speculate", {"action": "store_true", "help": "不用第二个输出头猜词（更慢，贪心时结果相同）"}),
]


def main(argv=None):
    manager, options = parse(argv, "和模型聊天", extra=OPTIONS, only_run_keys=True, reads=READS)
    sampling_of(options, DEFAULTS)
    if manager.config["threads"]:
        torch.set_num_threads(manager.config["threads"])
    paths, stretch = model_paths(options.model, manager.config), stretch_of(options, manager.config)

    options.box = None if options.tools is None else toolbox(options.tools)

    def open_model(path):
        return short_names([path])[0], open_session(path, manager.config["device"], options, stretch)

    chats = {name: open_model(path)[1] for name, path in zip(short_names(paths), paths)}
    if options.box and not any(session.tools for session in chats.values()):
        raise UserError("这个模型没有学过用工具，--tools 用不上。请先用带工具调用的数据训练，见 docs/tools.md。")
    how = sampling_of(options, next(iter(chats.values())).sampling)
    if options.prompt is None:
        return converse(chats, how, open_model, options)
    return answer_once(chats, options.prompt, how, options.stats, options.show_thinking, options.box)


def sampling_of(options, table):
    """The options of Session.ask: what the command says, else the model's own table. UserError for nonsense."""
    if options.context is not None and options.context < 8:
        raise UserError("--context 至少为 8。")
    if "" in (options.stop or ()):
        raise UserError("--stop 后面不能是空的文字。")
    given = {name: getattr(options, name) for name in table if getattr(options, name) is not None}
    return {**checked({**table, **given, "seed": options.seed}), "stops": tuple(options.stop or ()),
            "thinking": options.thinking or "auto",
            "speculate": False if options.no_speculate else None}


def checked(how):
    """The same options, in the form that Sampling takes. UserError for values that no way to a model takes."""
    for name, (low, high) in {**RANGES, "max_new_tokens": (1, None)}.items():
        if not (how[name] >= low and (high is None or how[name] <= high)):
            bounds = f"不小于 {low}" if high is None else f"在 {low} 到 {high} 之间"
            raise UserError(f"{name} 应{bounds}，而不是 {how[name]}。")
    return {**how, "top_k": max(how["top_k"], 0)}                                   # -1: vLLM's word for all


def open_session(path, device, options, stretch=None):
    model, vocab, payload = load(path, device, stretch)
    completes = payload["stage"] == "Pre"
    title, size = made_by(payload["stage"]), sum(p.numel() for p in model.parameters()) / 1e6
    if options.prompt is None or completes:             # who asks for one reply wants nothing else
        about = "，还没学过对话，只会接着写" if completes else ""
        print(f"{path}：{title}，{size:.1f} M 参数{about}", file=sys.stderr)
    context, talk = context_of(model, payload, options.context), talk_of(payload)
    session = Session(model, vocab, context, completes, options.system, talk["sampling"], talk["acts"])
    if options.box and "calls" in session.acts and not completes:
        session.tools = options.box.offered
        session.clear()
        if why := crowded(tools_size(session.messages, vocab), context):
            raise UserError(f"{path}：{why}。")
    return session


def speaking(session, pieces, box, how):
    """The reply as it comes; what it calls is carried out where there are tools."""
    return acted(session, box, pieces, **how) if session.tools else pieces


def short_names(paths):
    """A distinct short name for each path: the file's, with its folder where two files are called the same."""
    stems = [Path(p).stem.removeprefix("TinySeek_") for p in paths]
    names = [s if stems.count(s) == 1 else f"{Path(p).resolve().parent.name}/{s}" for s, p in zip(stems, paths)]
    return [n if names.count(n) == 1 else f"{n}#{i + 1}" for i, n in enumerate(names)]


def answer_once(chats, prompt, how, stats=False, thoughts=False, box=None):
    """--prompt: the reply alone; with several models each reply under its model's name. Remarks go to stderr."""
    for name, session in chats.items():
        if len(chats) > 1:
            print(f"【{name}】")
        show(speaking(session, session.ask(prompt, **how), box, how), thoughts=thoughts, beside=sys.stderr)
        for remark in remarks(session, stats):
            print(f"（{remark}）", file=sys.stderr)
    return 0


def converse(chats, how, open_model, options):
    """Questions and commands until the person leaves."""
    def ask(how, again=False, text=None):
        for name, session in chats.items():
            alone = "接着写：" if session.completes else "小寻："
            print(f"\n【{name}】" if len(chats) > 1 else alone, end="\n" if len(chats) > 1 else "", flush=True)
            pieces = session.retry(**how) if again else session.ask(text, **how)
            show(speaking(session, pieces, options.box, how), True, commands.thoughts)
            thin(remarks(session, commands.stats, not commands.thoughts))

    commands = Commands(chats, how, checked, open_model, ask)
    commands.stats, commands.thoughts = options.stats, options.show_thinking
    keyboard = Keyboard(commands.table)
    ctrl_c_interrupts()
    completes = all(session.completes for session in chats.values())
    print(f"{'你起个头，它接着写' if completes else '开始聊天吧'}。/help 看命令，/quit 结束。")
    while True:
        try:
            line = keyboard.ask("\n你：")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        except UserError as error:
            print(error)
            continue
        if line.startswith("／"):                        # as a Chinese keyboard writes it
            line = "/" + line[1:]
        if LEAVE.fullmatch(line):
            return 0
        try:
            if line.startswith("/") and "\n" not in line:
                commands.run(line)
            elif line:
                ask(how, text=line)
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            thin(["已打断"])


if __name__ == "__main__":
    guarded(main)

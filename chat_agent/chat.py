"""Talk to a model in the terminal, or get one reply: python chat_agent/chat.py --model out/TinySeek_SFT_final.pkl --prompt 你好"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from chat_agent.load import TITLES, context_of, load
from chat_agent.session import Session
from model.sampling import Sampling
from tools.cli import guarded, parse
from tools.errors import UserError
from tools.formats import SURROGATE
from tools.template import ROLE_NAMES

HELP = """命令：
  /clear        忘掉这次对话，重新开始
  /retry        上一句重新回答一次
  /save 文件    把对话存成一行 JSON（也可用作训练数据）
  /load 文件    接着存下的对话继续
  /help         显示这些命令
  /quit         结束（也可按 Ctrl-D）
回答中按 Ctrl-C 可以打断。"""
ENDINGS = {"length": "已到 --max_new_tokens 的长度上限", "loop": "回答开始重复，已停下"}
OPTIONS = [
    ("--model", {"action": "append", "metavar": "文件", "help": "模型 .pkl，任何阶段的都行；写几次就让几个模型并排回答（默认 out/TinySeek_SFT_final.pkl）"}),
    ("--prompt", {"metavar": "文字", "help": "只回答这一句：标准输出里只有回答"}),
    ("--system", {"metavar": "文字", "help": "系统提示，放在对话最前面"}),
    ("--max_new_tokens", {"type": int, "default": 256, "metavar": "数", "help": "一次回答最多多少个词元（256）"}),
    ("--temperature", {"type": float, "default": 0.0, "metavar": "数", "help": "0 = 总取最可能的；越大越随意，常用 0.7（0）"}),
    ("--top_k", {"type": int, "default": 0, "metavar": "数", "help": "只在最可能的 k 个里选，0 = 不限（0）"}),
    ("--top_p", {"type": float, "default": 1.0, "metavar": "数", "help": "只在合计概率达到 p 的最可能的几个里选（1.0）"}),
    ("--min_p", {"type": float, "default": 0.0, "metavar": "数", "help": "去掉概率不到最可能者 p 倍的（0）"}),
    ("--repetition_penalty", {"type": float, "default": 1.0, "metavar": "数", "help": "大于 1 时少用回答里已有的词（1.0）"}),
    ("--no_repeat_ngram", {"type": int, "default": 0, "metavar": "数", "help": "回答里不重复任何 n 个连续的词元，0 = 不限（0）"}),
    ("--seed", {"type": int, "metavar": "数", "help": "随机种子；同一种子回答相同"}),
    ("--context", {"type": int, "metavar": "数", "help": "对话最多占多少个词元，更早的整轮先忘掉（默认为训练时的 max_len）"}),
    ("--no_speculate", {"action": "store_true", "help": "不用第二个输出头猜词（更慢，贪心时结果相同）"}),
]


def main(argv=None):
    manager, options = parse(argv, "和模型聊天", extra=OPTIONS, only_run_keys=True)
    how = sampling_of(options)
    if manager.config["threads"]:
        torch.set_num_threads(manager.config["threads"])
    paths = options.model or [Path(manager.config["out_dir"]) / "TinySeek_SFT_final.pkl"]
    chats = {name: open_session(path, manager.config["device"], options) for name, path in zip(short_names(paths), paths)}
    if options.prompt is None:
        return converse(chats, how)
    return answer_once(chats, options.prompt, how)


def sampling_of(options):
    """The options of Session.ask; nonsense is a UserError before a model is loaded."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram")
    values = {name: getattr(options, name) for name in names}
    try:
        Sampling(**values)
    except ValueError:
        shown = " ".join(f"--{name} {value}" for name, value in values.items())
        raise UserError(f"取样选项超出范围：{shown}。temperature、top_k、no_repeat_ngram 不小于 0，top_p、min_p 在 0 到 1 之间，"
                        "repetition_penalty 大于 0。") from None
    if options.max_new_tokens < 1 or options.context is not None and options.context < 8:
        raise UserError("--max_new_tokens 至少为 1，--context 至少为 8。")
    return {**values, "max_new_tokens": options.max_new_tokens, "seed": options.seed,
            "speculate": False if options.no_speculate else None}


def open_session(path, device, options):
    model, vocab, payload = load(path, device)
    completes = payload["stage"] == "Pre"
    print(f"{path}：{TITLES.get(payload['stage'], payload['stage'])}，{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M 参数"
          + ("，还没学过对话，只会接着写" if completes else ""), file=sys.stderr)
    return Session(model, vocab, context_of(model, payload, options.context), completes, options.system)


def short_names(paths):
    """A distinct short name for each path: the file's, with its folder where two files are called the same."""
    stems = [Path(p).stem.removeprefix("TinySeek_") for p in paths]
    names = [s if stems.count(s) == 1 else f"{Path(p).resolve().parent.name}/{s}" for s, p in zip(stems, paths)]
    return [n if names.count(n) == 1 else f"{n}#{i + 1}" for i, n in enumerate(names)]


def answer_once(chats, prompt, how):
    """--prompt: the reply alone; with several models each reply under its model's name. Remarks go to stderr."""
    for name, session in chats.items():
        if len(chats) > 1:
            print(f"【{name}】")
        show(session.ask(prompt, **how))
        if session.reply.finish in ENDINGS:
            print(f"（{ENDINGS[session.reply.finish]}）", file=sys.stderr)
    return 0


# A model may write any byte. On a terminal control characters become visible ones instead of moving the cursor.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def show(pieces):
    """Print pieces as they come, then a line end."""
    table = VISIBLE if sys.stdout.isatty() else {}
    try:
        for piece in pieces:
            print(piece.translate(table), end="", flush=True)
    finally:
        pieces.close()                                  # an interrupted reply is kept in the history as far as it went
        print(flush=True)


# ---------------------------------------------------------------- the conversation

def converse(chats, how):
    print("开始聊天吧。/help 看命令，/quit 结束。")
    while True:
        try:
            line = input("\n你：").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if line == "/quit":
            return 0
        if not line:
            continue
        try:
            if line.startswith("/"):
                command(line, chats, how)
            else:
                reply_all(chats, lambda session: session.ask(line, **how))
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            print("（已打断）")


def reply_all(chats, ask):
    for name, session in chats.items():
        print(f"\n【{name}】" if len(chats) > 1 else "小寻：", end="\n" if len(chats) > 1 else "", flush=True)
        show(ask(session))
        print(f"（{remark(session)}）")


def remark(session):
    """Length, speed, how often head 2 guessed right, and why the reply ended where that is not the usual reason."""
    reply, parts = session.reply, []
    parts.append(f"{len(reply.ids)} 词元，{len(reply.ids) / max(session.seconds, 1e-9):.0f} 词元/秒")
    if reply.drafted:
        parts.append(f"第二头猜中 {reply.accepted}/{reply.drafted}")
    if reply.finish in ENDINGS:
        parts.append(ENDINGS[reply.finish])
    return "，".join(parts)


def command(line, chats, how):
    name, _, rest = line.partition(" ")
    if name == "/clear":
        for session in chats.values():
            session.clear()
        print("好，重新开始。")
    elif name == "/retry":
        if not any(message["role"] == "user" for session in chats.values() for message in session.messages):
            raise UserError("还没有可以重答的问题。")
        again = how if how["temperature"] else {**how, "temperature": 0.8, "top_p": 0.9}
        if not how["temperature"]:
            print("（temperature 为 0 时每次都一样，这次用 0.8）")
        reply_all(chats, lambda session: session.retry(**{**again, "seed": None}))
    elif name == "/save":
        save(chats, rest.strip())
    elif name == "/load":
        restore(chats, rest.strip())
    else:
        print(HELP if name == "/help" else f"没有 {name} 这个命令。\n{HELP}")


def save(chats, path):
    """One line of {"messages": […]} per model, the shape that training reads."""
    if not path:
        raise UserError("请写文件名，例如 /save 对话.jsonl")
    lines = [json.dumps({"messages": session.messages}, ensure_ascii=False) for session in chats.values()]
    try:
        Path(path).expanduser().write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"存不了 {path}：{error.strerror}") from None
    print(f"已存到 {path}")


def restore(chats, path):
    """The first line for the first model and so on; models beyond the last line get the last one."""
    if not path:
        raise UserError("请写文件名，例如 /load 对话.jsonl")
    try:
        lines = [one for one in Path(path).expanduser().read_text(encoding="utf-8").split("\n") if one.strip()]
        saved = [messages_of(json.loads(one)) for one in lines]
    except OSError as error:
        raise UserError(f"读不了 {path}：{error.strerror}") from None
    except (ValueError, RecursionError):
        saved = []
    if not saved:
        raise UserError(f"{path} 不是 /save 存下的对话。")
    for i, session in enumerate(chats.values()):
        session.messages = [dict(m) for m in saved[min(i, len(saved) - 1)]]
    print(f"接着 {path} 里的 {sum(m['role'] == 'user' for m in saved[0])} 轮对话继续。")


def messages_of(row):
    """The messages of one saved line. ValueError if it is anything else."""
    messages = row.get("messages") if isinstance(row, dict) else None
    good = isinstance(messages, list) and all(
        isinstance(m, dict) and m.get("role") in ROLE_NAMES and isinstance(m.get("content"), str) and not SURROGATE.search(m["content"])
        for m in messages)
    if not good:
        raise ValueError
    return [{"role": m["role"], "content": m["content"]} for m in messages]


if __name__ == "__main__":
    guarded(main)

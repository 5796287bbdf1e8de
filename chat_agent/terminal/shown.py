"""How a reply looks on a terminal. What is kept, saved and graded is always the reply as the model wrote it."""

import os
import re
import sys

from chat_agent.acted import USED
from chat_agent.session import too_long, tools_size
from tools.acting.spoken import SAID, THOUGHT

# A model may write any byte. On a terminal control characters become visible ones instead of moving the cursor.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
ITEM = r"\|([^|\n]+)\|([^|\n]+)\|([^|\n]+)\|"
NOTHING = "没有"
ENDINGS = {"length": "已到 --max_new_tokens 的长度上限", "loop": "回答开始重复，已停下"}


def show(pieces, as_list=False, thoughts=False, beside=None):
    """Print what is said as it comes, then a line end. as_list: a shopping list is shown as one, once it is complete;
    thoughts: dim, on lines before what is said; beside: where calls and their results go instead of standard output."""
    table = VISIBLE if sys.stdout.isatty() else {}
    held = "" if as_list else None                      # a reply that may yet become a shopping list
    thinking = False
    try:
        for piece in pieces:
            kind = getattr(piece, "kind", SAID)
            if thoughts and (kind == THOUGHT) != thinking:
                thinking = not thinking
                print("（想：" if thinking else "）\n", end="")
            if kind == USED:
                print(dimmed("\n".join(used(piece)).translate(table)), file=beside, flush=True)
            if kind == THOUGHT and thoughts:
                print(dimmed(piece.translate(table)), end="", flush=True)
            if kind != SAID:
                continue
            if held is not None and (held + piece).startswith("|") and "\n" not in piece:
                held += piece
                continue
            print(((held or "") + piece).translate(table), end="", flush=True)
            held = None
    finally:
        if thinking:
            print("）")
        pieces.close()                                  # an interrupted reply is kept in the history as far as it went
        print(readable(held or "").translate(table), flush=True)


def used(piece):
    """A tool and what it gave: two lines."""
    said = "，".join(f"{name}：{value}" for name, value in piece.arguments.items())
    return [f"（用 {piece.name}　{said}".replace("\n", " "), *[f"　得到　{line}" for line in piece.split("\n")][:8]]


def readable(text):
    """A shopping list in the form that the model was taught, as a list for people; any other text as it is.

    "|苹果|三斤|没有||大米|两袋|新的|" -> 购物清单：, · 苹果　三斤, · 大米　两袋（新的）, a line each
    """
    if not re.fullmatch(f"({ITEM})+", text.strip()):
        return text
    items = ((good, amount, "" if special == NOTHING else f"（{special}）")
             for good, amount, special in re.findall(ITEM, text))
    return "\n".join(["购物清单：", *(f"  · {good}　{amount}{special}" for good, amount, special in items)])


def remarks(session, stats=False, folded=False):
    """What the person should know about the last reply: thin lines, often none. stats: also length and speed; folded:
    there was a thought that is not shown."""
    reply, lines, said = session.reply, [], session.messages[-1:]
    last = said[0] if said and said[0]["role"] == "assistant" else {}
    if folded and last.get("thinking"):
        lines.append(f"想了 {len(last['thinking'])} 个字；/set show_thinking on 就显示出来")
    lines += [f"模型要用工具：{call}".translate(VISIBLE) for call in last.get("calls", ())]
    lines += filter(None, [too_long(session.used, session.context, tools_size(session.messages, session.vocab))])
    if session.dropped:
        lines.append(f"对话太长，最早的 {session.dropped} 轮模型已经看不到了；/clear 可以重新开始")
    if not last.get("content", "").strip() and not last.get("calls"):
        lines.append("空的回答：模型一个字也没说就结束了，/retry 可以再试一次")
    if reply.finish in ENDINGS:
        lines.append(ENDINGS[reply.finish])
    if stats:
        lines.append(statistics(session))
    return lines


def statistics(session):
    """Length, speed, how much of the context is used, how often the second head guessed right."""
    reply, size = session.reply, len(session.reply.ids)
    text = f"{size} 词元，{size / max(session.seconds, 1e-9):.0f} 词元/秒，上下文用了 {session.used + size}/{session.context}"
    return text + (f"，第二个输出头猜中 {reply.accepted}/{reply.drafted}" if reply.drafted else "")


def thin(lines):
    """Lines in brackets, dim on a terminal that knows the word for it (Windows' old console does not)."""
    for line in lines:
        print(dimmed(f"（{line}）"))


def dimmed(text):
    dim = sys.stdout.isatty() and os.name != "nt" and os.environ.get("TERM", "dumb") != "dumb"
    return f"\x1b[2m{text}\x1b[0m" if dim else text

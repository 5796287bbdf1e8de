"""What is said to the bot besides its tasks: remarks that want a warm word, and questions outside its world, which it
admits.

Remarks are in data/hand_remarks.jsonl, questions in data/hand_outside.jsonl: `asks` for training, `others` held out.
`right` says which replies are sensible.
"""
import re
from functools import lru_cache

from tools.demo import words
from tools.demo.hold import chinese
from tools.demo.names import draw_name, held_name, latin
from tools.demo.noise import FREE, KITS, OTHER, Kit, dress, vary
from tools.demo.outside_words import HELD, TRAINED
from tools.demo.tasks import hand_rows

# What it can do instead; every reply ends with one of these.
SKILLS = ("，我会算加减法、列购物清单和聊天", "，可以考我反义词、量词，或者让我倒写", "，不如让我算数、猜字，或者陪你聊天")
NONSENSE, LONG = "nonsense", "long"
UNREAD = {NONSENSE: "我没看懂", LONG: "这段话太长，我读不了"}
WEIGHTS = {"explain": 4, "english": 2, "multiply": 3, "long_sum": 3, "unknown_fact": 3, "poem": 2, "product": 2,
           NONSENSE: 3, LONG: 2}
BEGINNINGS = ("总结一下：", "请概括这段话：", "把下面的话缩短：", "这段话是什么意思？", "", "帮我读一读：", "改写这段文字：")
HELD_BEGINNINGS = ("归纳中心思想：", "给这段文字起个标题：", "请润色：", "划出下文的重点：")
REMARK_KIT = Kit([""], ["唉，", "哎，", "小寻，", "你好，", "我跟你说，", "嗯，", "那个，", "今天", "刚才"], ["呀", "啊", "哎", "", ""],
                 ["啊", "呀", "……", "～", "！", "。", "，唉", "呢"])
HELD_REMARK_KIT = Kit([""], ["不瞒你说，", "喂喂，", ""], ["", "捏"], ["～～", "。。", "，真的", "嘛"])

ADMITS = re.compile("不知道|不会|不懂|没看懂|看不到|没学过|没有学过|做不到|做不了|教不了|说不清楚|不认识|不了解|读不了|查不到|没有钟|回答不了")
LONGEST = 60                    # a sensible reply is short: a page of rubbish that happens to contain the word is none


def admits(reply):
    """Does it say that it cannot?"""
    return len(reply) <= LONGEST and bool(ADMITS.search(reply))


def right(row, reply):
    """A row that says how it is graded -> is this reply sensible?

    accept: the reply ends with one of these, a number being a whole one. hints: it is short and contains one. outside:
    it admits.
    """
    reply = reply.strip().rstrip("。！!.~～")
    if any(reply.endswith(one) and not (one[0].isdigit() and reply[:-len(one)][-1:].isdigit())
           for one in row.get("accept", ())):
        return True
    if len(reply) <= LONGEST and any(one in reply for one in row.get("hints", ())):
        return True
    return bool(row.get("outside")) and admits(reply)


@lru_cache(maxsize=None)
def kinds():
    """{kind: (lead, asks, held-out asks)} of the hand-written questions."""
    return {row["kind"]: (row["reply"], row["asks"], row["others"]) for row in hand_rows("outside")}


def reply_to(kind):
    names = [*kinds(), *UNREAD]
    return (UNREAD.get(kind) or kinds()[kind][0]) + SKILLS[names.index(kind) % len(SKILLS)]


def outside(rng, style=FREE, kind=None):
    """-> (question, reply)"""
    names = [*kinds(), *UNREAD]
    kind = kind or rng.choices(names, [WEIGHTS.get(name, 1) for name in names])[0]
    if kind == NONSENSE:
        return nonsense(rng, style), reply_to(kind)
    if kind == LONG:
        return long_text(rng, style), reply_to(kind)
    form = vary(rng, rng.choice(kinds()[kind][2 if style == OTHER else 1]))
    question = re.sub(r"\{(\w+)\}", lambda slot: filler(rng, slot[1], style), form)
    plain = kind == "english" or rng.random() < 0.4
    return (question if plain else dress(rng, question, KITS[style])), reply_to(kind)


def filler(rng, slot, style):
    pool = (HELD if style == OTHER else TRAINED).get(slot)
    if pool:
        return rng.choice(pool)
    if slot in "smb":
        low, high = {"s": (2, 99), "m": (100, 999), "b": (1000, rng.choice((9999, 99999, 9999999)))}[slot]
        n = rng.randint(low, high)
        return chinese(n) if n < 100 and rng.random() < 0.25 else str(n)
    return {"city": lambda: rng.choice(words.CITIES), "thing": lambda: rng.choice(words.GIFTS),
            "dish": lambda: rng.choice(words.PLAIN_DISHES),
            "name": lambda: unheld(rng, draw_name), "latin": lambda: unheld(rng, latin).capitalize()}[slot]()


def unheld(rng, draw):
    """A name that is not held out."""
    name = draw(rng)
    while held_name(name):
        name = draw(rng)
    return name


def nonsense(rng, style):
    """Keys hit at random, one character again and again, marks, words thrown together."""
    keys, marks = ("qwertyuiopasdfghjklzxcvbnm", "。？！，…~?!.,;") if style != OTHER else ("1234567890qazwsxedc",
        "#@%&*+_=/")
    moods = "啊哈呃额嗯哦咦嘿哇呜" if style != OTHER else "嗷嘟咕喵汪"
    some = lambda pool, low, high: "".join(rng.choice(pool) for _ in range(rng.randint(low, high)))
    return rng.choice(
        (lambda: some(keys, 3, 14), lambda: rng.choice(moods + words.CHARACTERS) * rng.randint(5, 12),
         lambda: some(marks, 1, 8),
                       lambda: some(words.CHARACTERS, 7, 16), lambda: some("的了吗呢吧啊着过在是和与", 5, 12),
                       lambda: some(words.CHARACTERS, 1, 3) + some(keys, 2, 6) + some(marks, 0, 3),
                       lambda: rng.choice("😀😂🤔👍🎉😭🙏🐱" if style != OTHER else "🚀🌟🍎") * rng.randint(1, 4)))()


def long_text(rng, style):
    texts = [row["text"] for row in hand_rows("text")]
    cut = len(texts) * 4 // 5                                       # the last ones are in no training row of this kind
    chosen = rng.sample(texts[cut:] if style == OTHER else texts[:cut], rng.choice((2, 3, 4)))
    return rng.choice(HELD_BEGINNINGS if style == OTHER else BEGINNINGS) + "".join(chosen)


@lru_cache(maxsize=None)
def remarks():
    return hand_rows("remarks")


def remark(rng, style=FREE, row=None):
    """-> (remark, reply)"""
    row = row or rng.choice(remarks())
    said = vary(rng, rng.choice(row["others" if style == OTHER else "asks"]))
    if rng.random() < 0.5:
        said = dress(rng, said + ("？" if said[-1] in "吗何啥" else ""), HELD_REMARK_KIT if style == OTHER else REMARK_KIT)
    return said, row["reply"]

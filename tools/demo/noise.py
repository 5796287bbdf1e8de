"""The wording of a question: which form, and what people do to it - marks, widths, spaces, polite words, traditional
characters.

Three styles. PLAIN: a core form as it stands. FREE: what training rows wear. OTHER: held-out forms, marks and polite
words, which no training row contains.
"""
from collections import namedtuple

from tools.demo.hold import chinese

PLAIN, FREE, OTHER = "plain", "free", "other"
MORE = 0.6                       # share of training questions that use a form beyond the core
Kit = namedtuple("Kit", "quotes before behind thanks")

KITS = {
    FREE: Kit(["“”", '""', "‘’", "''", "「」", "", "", "  ", "《》"],
              ["请问，", "请问", "你好，", "小寻，", "麻烦问一下，", "想问一下，", "我想问，", "问你个问题，", "考考你，", "嗯，", "那个，", "老师，", "帮帮我，",
               "请教一下，", "来，", "麻烦你，", "你说，", "对了，", "帮个忙，", "请告诉我，", "我想知道，", "嗨，", "那么", "再问一个，", "快说，"],
              ["呢", "呀", "啊", "", ""],
              ["，谢谢", "，谢谢你", "，麻烦了", "，谢谢啦", "谢谢", "，快点", "，好吗", "，可以吗", "，行吗", "吧", "一下"]),
    OTHER: Kit(["『』", "【】", "〝〞", "“”", ""],
               ["劳驾，", "拜托，", "小寻小寻，", "亲，", "不好意思打扰了，", "有件事请教，", "话说，"],
               ["哈", "咧", "呐", ""],
               ["，感谢", "，多谢啦", "，拜托了", "，辛苦啦", "，有劳了"]),
}
SIMPLE = "请问帮么吗个几这说来过还给对写后从数词义谁时买两样边减烦谢听记欢爱国儿头号会点开应该于里计让觉"
TRADITIONAL = "請問幫麼嗎個幾這說來過還給對寫後從數詞義誰時買兩樣邊減煩謝聽記歡愛國兒頭號會點開應該於裡計讓覺"
OLD_SCRIPT = str.maketrans(SIMPLE, TRADITIONAL)
FULL_WIDTH = str.maketrans("0123456789+-=", "０１２３４５６７８９＋－＝")
WEEK_WORDS = ("星期", "星期", "周", "周", "礼拜")


def pick(rng, forms, style):
    """One form of (core, more, others), not dressed."""
    if style == PLAIN:
        return rng.choice(forms[0])
    return rng.choice(forms[2] if style == OTHER else forms[1] if rng.random() < MORE else forms[0])


def ask(rng, forms, style, **slots):
    """A form, dressed as the style wants and filled in."""
    return fill(rng, pick(rng, forms, style), style, **slots)


def fill(rng, form, style, **slots):
    return form.format(**slots) if style == PLAIN else dress(rng, form, KITS[style]).format(**slots)


def dress(rng, form, kit):
    """A form in other clothes; the {slots} stay as they are."""
    if "“" in form and rng.random() < 0.7:
        marks = rng.choice(kit.quotes)
        form = form.replace("“", marks[:1]).replace("”", marks[1:])
    form = ending(rng, form, kit)
    if rng.random() < 0.3:
        before = rng.choice(kit.before)
        form = before + (form if not (form.startswith("请") and before.startswith("请")) else form[1:].lstrip("问"))
    if rng.random() < 0.06:
        form = form.translate(OLD_SCRIPT)
    if rng.random() < 0.08:
        form = form.replace("{", " {").replace("}", "} ")
    if rng.random() < 0.06:
        form = form.replace("，", rng.choice((",", " ", ", "))).replace("？", "?")
    return form if rng.random() < 0.95 else form + rng.choice((" ", "  ", "\n"))


def ending(rng, form, kit):
    """What stands behind the last word: a question mark or none, particles, thanks."""
    if not form.endswith("？"):
        if form[-1] in "}=”":
            return form + rng.choice(("", "", "", "", "？", "?", "。", rng.choice(kit.thanks[:4])))
        return form + (rng.choice(kit.thanks) if rng.random() < 0.2 else rng.choice(("", "", "", "。", "！", "？")))
    asked = form[:-1]
    if asked[-1] not in "}=”吗呢" and rng.random() < 0.25:
        asked += rng.choice(kit.behind)
    if rng.random() < 0.08:
        return asked + rng.choice(kit.thanks[:4])
    return asked + rng.choice(("？", "？", "？", "", "", "?", "?", "？？", "。", "!?", " ？"))


def digits(rng, n, style):
    """A number in digits, now and then in full width."""
    return str(n).translate(FULL_WIDTH) if style != PLAIN and rng.random() < 0.08 else str(n)


def spelled(rng, n, style, words, share=0.5):
    """A small number: in words (its plain form), or, where the style is not plain, as often in digits."""
    return digits(rng, n, style) if style != PLAIN and rng.random() < share else words(n)


def in_digits(rng, n, style, share=0.3):
    """A small number: in digits (its plain form), or, where the style is not plain, sometimes in words."""
    return chinese(n) if style != PLAIN and rng.random() < share else digits(rng, n, style)


def week_word(rng, text, style):
    """星期 -> 周 or 礼拜, throughout; 星期日 now and then 星期天."""
    if style == PLAIN:
        return text
    word = rng.choice(WEEK_WORDS)
    if rng.random() < 0.4 and word != "周":
        text = text.replace("星期日", "星期天")
    return text.replace("星期", word)

"""The wording of a question: which form, and what people do to it - marks, widths, spaces, polite words, traditional
characters.

Three styles. PLAIN: a core form as it stands. FREE: what training rows wear. OTHER: held-out forms, marks and polite
words, which no training row contains.

A form may hold alternations: “[数|数一数]有[几|多少]个” is four forms.
"""
import re
import unicodedata
from collections import namedtuple

from tools.demo.hold import chinese
from tools.demo.words import CHARACTERS

PLAIN, FREE, OTHER = "plain", "free", "other"
MORE = 0.75                      # share of training questions that use a form beyond the core
Kit = namedtuple("Kit", "quotes before behind thanks")

KITS = {
    FREE: Kit(["“”", '""', "‘’", "''", "「」", "", "", "  ", "《》"],
              ["请问，", "请问", "你好，", "小寻，", "麻烦问一下，", "想问一下，", "我想问，", "问你个问题，", "考考你，", "嗯，", "那个，", "老师，", "帮帮我，",
               "请教一下，", "来，", "麻烦你，", "你说，", "对了，", "帮个忙，", "请告诉我，", "我想知道，", "嗨，", "那么", "再问一个，", "快说，",
               "[老师|妈妈|同学|弟弟|朋友|奶奶|有人|客人|同桌|女儿|小明|隔壁][问|想知道|让我问|考我|想问你|问我|叫我来问][：|，|]",
               "[我在写作业|上课了|吃完饭了|我有点无聊|今天放假|刚下课|我不太懂|帮我看看|现在考你|下一题|这道题不会|听好了|最后一个问题|说真的]，",
               "[你好呀|您好|哈喽|早上好|晚上好|喂|哎|小寻你好|小寻啊|机器人|同学|朋友]，", "[有空吗|在吗|听得到吗|准备好了吗]？",
               "[换一个|继续|然后|接着|还有|好的|行|没错|不错|真棒][，|。]", "[我|他|她|我们][不知道|忘了|不清楚|想了半天|猜不出]，"],
              ["呢", "呀", "啊", "", ""],
              ["，谢谢", "，谢谢你", "，麻烦了", "，谢谢啦", "谢谢", "，快点", "，好吗", "，可以吗", "，行吗", "吧", "一下",
                "，[我等着|急用|快告诉我|别算错|想好再说|认真答|直接说|告诉我]"]),
    OTHER: Kit(["『』", "【】", "〝〞", "“”", ""],
               ["劳驾，", "拜托，", "小寻小寻，", "亲，", "不好意思打扰了，", "有件事请教，", "话说，"],
               ["哈", "咧", "呐", ""],
               ["，感谢", "，多谢啦", "，拜托了", "，辛苦啦", "，有劳了"]),
}
ALTERNATION = re.compile(r"\[([^\[\]]*)\]")
SLIPS = 0.1                      # share of training questions with a slip of the keys
UNKNOWN = 0.15                   # share in which a few characters beside each other are any others, but not
DECIDES = set("星期周天日月号年前后大小多少加减和差首尾头末第一最倒反不吗没未")     # these: the answer hangs on them
ANY_MARKS = 0.2                  # share of quoted words that stand in marks of any kind
PAIRS = ["()", "（）", "[]", "［］", "｛｝", "<>", "〈〉", "〔〕", "〖〗", "«»", "‹›", "„“", "‚‘", "``", "**", "~~", "--", "||",
         "//", "··", "＂＂", "＇＇", "﹁﹂", "﹃﹄", "❝❞", "⟨⟩", "｢｣", "→←", "##"]
# Signs of all kinds but the held-out ones: so many that hardly one gets an id of its own.
SIGNS = [sign for first, last in ((0x2010, 0x2C00), (0x3001, 0x3040), (0xFE30, 0xFE70), (0xFF01, 0xFFEF),
                                  (0x1F300, 0x1FA00))
         for sign in map(chr, range(first, last))
         if unicodedata.category(sign)[0] in "PS" and sign not in "『』【】〝〞🚀🌟🍎"]
HAN = (0x4E00, 0x9FA5)           # any of these may stand in a word that was never learned
SIMPLE = "请问帮么吗个几这说来过还给对写后从数词义谁时买两样边减烦谢听记欢爱国儿头号会点开应该于里计让觉"
TRADITIONAL = "請問幫麼嗎個幾這說來過還給對寫後從數詞義誰時買兩樣邊減煩謝聽記歡愛國兒頭號會點開應該於裡計讓覺"
OLD_SCRIPT = str.maketrans(SIMPLE, TRADITIONAL)
FULL_WIDTH = str.maketrans("0123456789+-=", "０１２３４５６７８９＋－＝")
WEEK_WORDS = ("星期", "星期", "周", "周", "礼拜")


def pick(rng, forms, style):
    """One form of (core, more, others), not dressed."""
    if style == PLAIN:
        return rng.choice(forms[0])
    return vary(rng, rng.choice(forms[2] if style == OTHER else forms[1] if rng.random() < MORE else forms[0]))


def vary(rng, form):
    """One of the forms that a form with alternations stands for."""
    return ALTERNATION.sub(lambda found: rng.choice(found[1].split("|")), form)


def ask(rng, forms, style, **slots):
    """A form, dressed as the style wants and filled in."""
    return fill(rng, pick(rng, forms, style), style, **slots)


def fill(rng, form, style, **slots):
    return form.format(**slots) if style == PLAIN else dress(rng, form, KITS[style]).format(**slots)


def dress(rng, form, kit):
    """A form in other clothes; the {slots} stay as they are."""
    if "“" in form and rng.random() < 0.7:
        marks = any_marks(rng) if kit is KITS[FREE] and rng.random() < ANY_MARKS else rng.choice(kit.quotes)
        form = form.replace("“", marks[:1]).replace("”", marks[1:])
    form = ending(rng, form, kit)
    if rng.random() < 0.3:
        before = vary(rng, rng.choice(kit.before))
        form = before + (form if not (form.startswith("请") and before.startswith("请")) else form[1:].lstrip("问"))
    if kit is KITS[FREE] and rng.random() < SLIPS:
        form = slip(rng, form)
    if kit is KITS[FREE] and rng.random() < UNKNOWN:
        form = unknown_word(rng, form)
    if rng.random() < 0.06:
        form = form.translate(OLD_SCRIPT)
    if kit is KITS[FREE] and rng.random() < 0.06:
        form = form.translate(FULL_WIDTH)
    if rng.random() < 0.08:
        form = form.replace("{", " {").replace("}", "} ")
    if rng.random() < 0.06:
        form = form.replace("，", rng.choice((",", " ", ", "))).replace("？", "?")
    return form if rng.random() < 0.95 else form + rng.choice((" ", "  ", "\n"))


def outside_slots(form):
    """Places of a form that no {slot} covers."""
    return [i for i in range(len(form)) if form[:i + 1].count("{") == form[:i + 1].count("}") and form[i] != "}"]


def slip(rng, form):
    """One character outside the {slots} left out, doubled, swapped with the next or mistyped: no single word decides
    what was asked."""
    places = outside_slots(form)
    if len(places) < 6:
        return form
    i = rng.choice(places)
    one, rest = form[i], form[i + 1:]
    if rest[:1] in ("", "{"):
        return form[:i] + rng.choice((one * 2, rng.choice(CHARACTERS))) + rest
    return form[:i] + rng.choice((rest, one * 2 + rest, rest[0] + one + rest[1:], rng.choice(CHARACTERS) + rest))


def unknown_word(rng, form):
    """Two or three characters outside the {slots} become others: whoever asks uses words that were never learned, and
    the rest must do."""
    size = rng.choice((2, 2, 3))
    places = outside_slots(form)
    starts = [i for i in places if form[i:i + size].isalpha() and not DECIDES & {*form[i:i + size]}
              and {*range(i, i + size)} <= {*places}
              and form[i - 1:i] != "}" and form[i + size:i + size + 1] != "{"]       # a slot's ends stay to be seen
    if len(places) < 8 or not starts:
        return form
    i = rng.choice(starts)
    draw = (lambda: chr(rng.randint(*HAN))) if rng.random() < 0.3 else (lambda: rng.choice(CHARACTERS))
    return form[:i] + "".join(draw() for _ in range(rng.choice((1, 2, 2, 3)))) + form[i + size:]


def any_marks(rng):
    """Marks that nobody has seen stand around a word as quotation marks do: known pairs, two signs alike, any two."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(PAIRS)
    sign = rng.choice(SIGNS)
    return sign * 2 if kind < 0.8 else sign + rng.choice(SIGNS)


def ending(rng, form, kit):
    """What stands behind the last word: a question mark or none, particles, thanks."""
    if not form.endswith("？"):
        if form[-1] in "}=”":
            return form + rng.choice(("", "", "", "", "？", "?", "。", rng.choice(kit.thanks[:4])))
        if rng.random() < 0.2:
            return form + vary(rng, rng.choice(kit.thanks))
        return form + rng.choice(("", "", "", "。", "！", "？"))
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

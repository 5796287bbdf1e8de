"""Chapter 1: characters or words, how many of them, and what a larger vocabulary costs."""

from collections import Counter

from course import COLORS, GREY, TASKS, drawing, options_of, texts, told_numbers

from tools.vocab import FIRST_WORD, Vocab

SIZES = (1000, 1500, 2000, 3000, 4000)
STRANGE = ("床前明月光，疑是地上霜。举头望明月，低头思故乡。空山新雨后，天气晚来秋。明月松间照，清泉石上流。"
           "竹喧归浣女，莲动下渔舟。大漠孤烟直，长河落日圆。会当凌绝顶，一览众山小。感时花溅泪，恨别鸟惊心。")
RARE = 10               # what was seen less often has hardly been learned


def cut(vocab, text):
    """-> tokens per 100 characters, share of the characters that had to be spelled as bytes."""
    ids = vocab.encode(text)
    spelled = sum(FIRST_WORD > one for one in ids) / 3           # a Chinese character is three bytes
    return 100 * len(ids) / len(text), spelled / len(text)


def seldom(vocab, text):
    """Share of the vocabulary's entries that the training text holds fewer than RARE times."""
    counts = Counter(vocab.encode(text))
    return sum(counts[number] < RARE for number in range(FIRST_WORD, len(vocab))) / len(vocab.words)


def measured(rows, held):
    """{kind: [(entries, tokens per 100 characters here, the same of the strange text, share seldom seen)]}"""
    found = {}
    for kind in ("char", "jieba"):
        found[kind] = []
        for size in SIZES:
            vocab = Vocab.create_vocab(rows, size, kind, texts=True, progress=False)
            found[kind].append((len(vocab), cut(vocab, held)[0], cut(vocab, STRANGE), seldom(vocab, "".join(rows))))
    return found


def draw(options, found):
    names = {"char": "按字", "jieba": "按词"}
    with drawing(options, 3) as (known, strange, rare):
        for color, (kind, points) in zip(COLORS, found.items()):
            entries = [point[0] for point in points]
            known.plot(entries, [point[1] for point in points], "o-", color=color, label=names[kind])
            strange.plot(entries, [point[2][0] for point in points], "o-", color=color, label=names[kind])
            rare.plot(entries, [100 * point[3] for point in points], "o-", color=color, label=names[kind])
        strange.axhline(100, color=GREY, linewidth=1, linestyle="--")
        strange.text(entries[0], 103, "一个字一个词元", color=GREY, fontsize=9)
        known.set(title="同一种文本：每 100 字多少词元", xlabel="词表项数", ylim=(0, None))
        strange.set(title="没见过的唐诗：每 100 字多少词元", xlabel="词表项数", ylim=(0, None))
        rare.set(title=f"见过不到 {RARE} 次的项（%）", xlabel="词表项数", ylim=(0, None))
        known.legend(loc="lower right")


def main(argv=None):
    options = options_of(argv, "tokens", "第一章：按字还是按词，词表多大", 20_000, "取多少句文本建词表")
    rows = [row["text"] for row in texts(list(TASKS), options.steps)]
    held = "".join(row["text"] for row in texts(list(TASKS), 1000, seed=1))
    found = measured(rows, held)
    draw(options, found)
    char, word = found["char"][-1], found["jieba"][-1]
    told_numbers(options, {
        "按字：词表项数": char[0], "按词：词表项数": word[0],
        "按字：每 100 字的词元": round(char[1], 1), "按词：每 100 字的词元": round(word[1], 1),
        "按字：唐诗每 100 字的词元": round(char[2][0], 1), "按词：唐诗每 100 字的词元": round(word[2][0], 1),
        "按词：唐诗拆成字节的字（%）": round(100 * word[2][1], 1),
        "按字：见过不到 10 次的项（%）": round(100 * char[3], 1), "按词：见过不到 10 次的项（%）": round(100 * word[3], 1)})


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

"""Chapter 2: a head that finds out by itself how to copy, and what MLA has to remember for it."""

import random
import tempfile
from pathlib import Path

from course import COLORS, GREY, drawing, options_of, told_numbers, torch, train, vocab_of

from model.decoding.cache import DecodeCache, cache_width
from model.decoding.glass import look_inside

CHARACTERS = "天地人山水火风云日月星光花草树木鸟鱼虫马牛羊米面茶酒书画琴棋红黄蓝白黑东西南北春夏秋冬上下左右前后里外"
SAMPLES = 12
DEEPSEEK_V2 = {"kept": 512 + 64, "full": 128 * 2 * 128}          # numbers per token and layer, arXiv:2405.04434


def said_twice(rng):
    """A word that nobody has ever seen, twice. Its second half can be known: by looking back."""
    word = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(5, 8)))
    return word, f"{word}，{word}。"


def document(vocab, text):
    return [vocab.id("<|im_end|>"), *vocab.encode(text)]


def what_heads_do(model, vocab, words):
    """-> share of the second word's characters that are guessed rightly, and of each head (layer, head) how much of its
    attention goes to the character that has to come next, where the word stood first."""
    right, found = [], {}
    for word, text in words:
        ids, size = document(vocab, text), len(word)
        begin = size + 3                                         # where the second word's second character stands
        for layer in range(model.config.n_layer):
            for head in range(model.config.n_head):
                inside = look_inside(model, ids[:begin], ids[begin:begin + size - 1], layer, head)
                looks = inside.attention[range(size - 1), range(2, size + 1)]
                found[layer, head] = found.get((layer, head), 0) + float(looks.mean()) / len(words)
        right.append((inside.logits_1.argmax(-1) == torch.tensor(ids[begin:begin + size - 1])).float().mean())
    return float(sum(right) / len(right)), found


@torch.inference_mode()
def two_ways(model, ids):
    """The largest difference between attention to expanded keys and values, and to the latents themselves."""
    read = []
    for limit in (0, 10 ** 9):
        cache = DecodeCache.of(model, 1, len(ids))
        cache.absorb_up_to = limit
        read.append(model.fc1(model.decode(torch.tensor([ids]), cache)))
    return float((read[0] - read[1]).abs().max())


def draw(options, history, best, attention, text, sizes):
    with drawing(options, 3, width_ratios=[1.1, 1.2, 0.9]) as (curve, square, bars):
        steps = [step for step, _, _ in history]
        curve.plot(steps, [100 * right for _, right, _ in history], color=COLORS[0], label="第二遍写对的字")
        curve.plot(steps, [100 * found[best] for _, _, found in history], color=COLORS[1], label="这个头看对地方的注意力")
        curve.set(title="几十步之内忽然学会", xlabel="步", ylabel="%", ylim=(0, 103))
        curve.legend(loc="lower right")
        square.imshow(attention, cmap="Blues", vmin=0, vmax=1)
        square.grid(False)
        square.set_xticks(range(len(text)), text)
        square.set_yticks(range(len(text)), text)
        square.set(title=f"第 {best[0] + 1} 层第 {best[1] + 1} 个头", xlabel="看哪里", ylabel="读到这里")
        square.spines[["top", "right"]].set_visible(True)
        for place, (name, (full, kept)) in enumerate(sizes.items()):
            for shift, value, color in ((-0.2, full, GREY), (0.2, kept, COLORS[0])):
                bars.bar(place + shift, value, 0.38, color=color)
                bars.text(place + shift, value * 1.1, f"{value:,}", ha="center", fontsize=8)
        bars.set_xticks(range(len(sizes)), sizes)
        bars.set(title="每层每个词元要记几个数", yscale="log", ylim=(20, 150_000))
        bars.legend(bars.containers[:2], ["全部键和值", "MLA 潜向量"], loc="upper left")


def main(argv=None):
    options = options_of(argv, "attention", "第二章：一个头自己学会“往回看”", 400)
    rng = random.Random(1)
    rows = [{"text": said_twice(rng)[1]} for _ in range(32 * options.steps)]
    words, history = [said_twice(random.Random(f"held {i}")) for i in range(SAMPLES)], []
    with tempfile.TemporaryDirectory() as folder:
        vocab = vocab_of(Path(folder), [{"text": CHARACTERS + "，。"}])

        def look(step, model):
            history.append((step, *what_heads_do(model, vocab, words)))

        model, _, _ = train(Path(folder), "pre", rows, options.steps, look=look, use_moe=False, use_fc2=False,
                            pair_start=0, copy_start=False, max_len=64)
    found = history[-1][2]
    best = max(found, key=found.get)
    word, text = words[0]
    ids = document(vocab, text)
    square = look_inside(model, ids[:1], ids[1:], *best).attention[1:, 1:]
    config = model.config
    sizes = {"这个模型": (2 * config.n_head * config.d_h, cache_width(config)),
             "DeepSeek-V2": (DEEPSEEK_V2["full"], DEEPSEEK_V2["kept"])}
    draw(options, history, best, square, list(text)[:-1], sizes)
    at = {step: right for step, right, _ in history}
    halfway = next((step for step, right, _ in history if right >= 0.5), None)
    told_numbers(options, {
        "写对的字，第 0 步（%）": round(100 * history[0][1], 1), "写对的字，最后（%）": round(100 * history[-1][1], 1),
        "写对一半的步数": halfway or 0, "此前 40 步写对的字（%）": round(100 * at.get((halfway or 0) - 40, 0), 1),
        "最好的头看对地方的注意力（%）": round(100 * found[best], 1),
        "这个头在第 0 步（%）": round(100 * history[0][2][best], 1),
        "全部键和值": sizes["这个模型"][0], "MLA 潜向量": sizes["这个模型"][1],
        "DeepSeek-V2 省到几分之一": round(DEEPSEEK_V2["full"] / DEEPSEEK_V2["kept"]),
        "两种算法最大的差": float(f"{two_ways(model, ids):.0e}")})


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

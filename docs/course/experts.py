"""Chapter 3: eight experts, and what happens when nobody sees to it that all of them work."""

import tempfile
from pathlib import Path

from course import COLORS, GREY, TASKS, drawing, options_of, texts, told_numbers, torch, train, vocab_of

from chat_agent.evaluation.scoring import document_losses
from tools.template import render_text

ALPHAS = {"没有 Lexp": 0.0, "alpha = 0.01": 0.01, "alpha = 1": 1.0}
IDLE = 0.01             # an expert with less than this share of the work does nothing


def loads(log):
    """(steps, layers, experts): each expert's share of the assignments of each step."""
    return torch.tensor([row["expert_load"] for row in log.rows])


def idle(load):
    """How many experts of all layers did next to nothing in the last 20 steps. load as of `loads`."""
    return int((load[-20:].mean(0) < IDLE).sum())


def favourites(model, vocab, rows):
    """[(layer, expert, token, share of that token's assignments)] for the expert that most wants one token."""
    ids = torch.tensor(vocab.encode("".join(row["text"] for row in rows))[:6000])
    with torch.no_grad():
        routings = model.encode(ids.view(-1, 100))[2].experts
    best = []
    for layer, routing in enumerate(routings):
        for one in ids.unique():
            seen = ids == one
            if seen.sum() >= 100:
                counts = torch.bincount(routing.experts[seen].flatten(), minlength=8) / seen.sum()
                best.append((float(counts.max()), layer, int(counts.argmax()), vocab.name(int(one))))
    return sorted(best, reverse=True)


def draw(options, found):
    with drawing(options, 1 + len(found), width=13, width_ratios=[1.5] + [1] * len(found)) as (curve, *maps):
        for color, (name, (load, _)) in zip(COLORS, found.items()):
            curve.plot(100 * load.amax(-1).mean(-1), color=color, linewidth=1.4, label=name)
        curve.axhline(100 / load.shape[-1], color=GREY, linestyle="--", linewidth=1)
        curve.text(len(load) * 0.99, 100 / load.shape[-1] - 0.6, "人人一样忙", color=GREY, ha="right", va="top", fontsize=9)
        curve.set(title="最忙的专家做了多少（%）", xlabel="步", ylim=(8, None))
        curve.legend(loc="upper right")
        for ax, (name, (load, _)) in zip(maps, found.items()):
            share = 100 * load[-20:].mean(0)
            ax.imshow(share, cmap="Blues", vmin=0, vmax=30, aspect="auto")
            ax.grid(False)
            for layer, expert in torch.cartesian_prod(*map(torch.arange, share.shape)).tolist():
                value = float(share[layer, expert])
                ax.text(expert, layer, f"{value:.0f}", ha="center", va="center", fontsize=8,
                        color="white" if value > 18 else "black")
            ax.set_xticks(range(share.shape[1]), range(1, share.shape[1] + 1))
            ax.set_yticks(range(share.shape[0]), range(1, share.shape[0] + 1))
            ax.set(title=name, xlabel="专家（数字是 %）", ylabel="层")


def main(argv=None):
    options = options_of(argv, "experts", "第三章：没有 Lexp 时，专家忙的忙死、闲的闲死", 300)
    rows, held = texts(list(TASKS), 20 * options.steps), texts(list(TASKS), 400, seed=1)
    found, liked = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        vocab = vocab_of(Path(folder), texts(list(TASKS), 6000))
        documents = [render_text(row["text"], vocab) for row in held]
        characters = sum(len(row["text"]) for row in held)
        for number, (name, alpha) in enumerate(ALPHAS.items()):
            model, log, _ = train(Path(folder), "pre", rows, options.steps, name=f"run{number}", alpha=alpha,
                                  n_layer=4, use_fc2=False)
            bits = float(document_losses(model, documents)[0].sum()) / characters / 0.6931
            found[name] = loads(log), bits
            share, layer, expert, token = favourites(model, vocab, held)[0]
            print(f"{name}：第 {layer + 1} 层第 {expert + 1} 个专家处理了“{token}”的 {share:.0%}")
            liked[name] = round(100 * share, 1)
    draw(options, found)
    numbers = {}
    for name, (load, bits) in found.items():
        numbers[f"{name}：几乎没事做的专家"] = idle(load)
        numbers[f"{name}：最忙的专家（%）"] = round(100 * float(load[-20:].mean(0).amax(-1).mean()), 1)
        numbers[f"{name}：一个词元最多有多少归同一个专家（%）"] = liked[name]
        numbers[f"{name}：留出文本比特/字"] = round(bits, 3)
    told_numbers(options, numbers)


if __name__ == "__main__":
    from tools.cli import guarded
    guarded(main)

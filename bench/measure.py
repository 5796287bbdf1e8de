"""What the benches share: the shape they speak of, medians taken by turns, the machine's best matrix product, tables
and pictures."""

import statistics
import time

import torch

from train_agent.trainers.hardware import machine

# Shape S of the figures: 8 rows of 512 tokens a step, two heads.
SHAPE = dict(vocab_size=5000, n_layer=4, d_model=256, n_head=8, d_c=64, d_r=16, hidden=256, other_experts=16,
             shared_experts=2, keep=4)
ROWS, LENGTH = 8, 512
# a step's own shape and two that suit a library best
PRODUCTS = ((2048, 256, 512), (1024, 1024, 1024), (2048, 2048, 2048))


def seconds(work):
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(rounds, warm_up=1, **works):
    """{name: median seconds}; the works take turns, so that a slow minute of the machine hits them all."""
    return by_turns(rounds, {name: lambda work=work: seconds(work) for name, work in works.items()}, warm_up)


def by_turns(rounds, measures, warm_up=1):
    """{name: median of what measures[name]() returned in its turns}; the first `warm_up` turns do not count."""
    found = {name: [] for name in measures}
    for _ in range(warm_up + rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(values[warm_up:]) for name, values in found.items()}


def peak(dtype, spent=0.3):
    """The best FLOP/s that a matrix product of any of PRODUCTS reaches here, on all threads."""
    return max(machine.product_rate(dtype, size, spent) for size in PRODUCTS)


def flops(model, tokens, length):
    """Floating-point operations of forward and backward: 6 per token and weight that multiplies it, and causal
    attention over `length`."""
    config, weights = model.config, dict(model.named_parameters())
    routed = sum(p.numel() for name, p in weights.items() if name.endswith(("mlp.up", "mlp.down")) and p.ndim == 3)
    looked_up = 0 if config.tie_embedding else model.embed.weight.numel()
    active = sum(map(torch.numel, weights.values())) - looked_up - round(routed
        * (1 - config.keep / config.other_experts))
    return tokens * (6 * active + 6 * config.n_layer * config.d_model * length)


def table(header, rows):
    """Lines of a table: first column to the left, numbers to the right; a Chinese character takes two places."""
    wide = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(_width, column)) for column in zip(*wide)]
    return ["  ".join(cell + " " * (w - _width(cell)) if i == 0 else " " * (w - _width(cell)) + cell
                      for i, (cell, w) in enumerate(zip(row, widths))) for row in wide]


def _width(text):
    return sum(1 + ("\u2e80" <= c) for c in text)


def draw(path, panels):
    """Write a PNG of bars and lines side by side.

    panels: (Chinese title, English title, {label: value} for bars or {name: [(x, y)]} for lines)
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from tools.plot import COLORS
    from tools.pictures.style import Page
    page = Page()
    with rc_context(page.rc()):
        figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for ax, (chinese, english, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            ax.set_title(chinese if page.chinese else english)
            if all(isinstance(v, (int, float)) for v in values.values()):
                bars = ax.bar(range(len(values)), list(values.values()), color=COLORS[:len(values)], width=0.6)
                ax.bar_label(bars, fmt="{:,.4g}", padding=2)
                ax.set_xticks(range(len(values)), [page.text(k) for k in values])
                ax.margins(y=0.15)
            else:
                for color, (name, points) in zip(COLORS, values.items()):
                    ax.plot(*zip(*points), "o-", color=color, label=page.text(name))
                ax.set_ylim(bottom=0)
                ax.legend()
        figure.savefig(path, dpi=130)

"""The picture of a learning-rate search: loss over rate, the suggestion marked."""
from pathlib import Path

import numpy as np

from tools.plot import COLORS, _save, smoothed
from tools.pictures.style import GREY, INK, Page

WORDS = {"title": ("寻找学习率", "Learning-rate finder"), "lr": ("学习率", "learning rate"), "loss": ("损失", "loss"),
         "best": ("建议", "suggested")}


def draw_lr_curve(history, suggestion, path):
    """history [{"lr", "loss"}], suggestion a rate or None -> path of the picture. UserError 2 or 7 where it cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure
    page = Page()
    word = {key: pair[0 if page.chinese else 1] for key, pair in WORDS.items()}
    rates, losses = (np.array([point[k] for point in history], dtype=float) for k in ("lr", "loss"))
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
        ax = figure.add_subplot()
        ax.plot(rates, losses, color=COLORS[0], alpha=0.3)
        ax.plot(rates, smoothed(losses, 0.8), color=COLORS[0], linewidth=2)
        ax.set_xscale("log")
        if suggestion is not None:
            ax.axvline(suggestion, color=COLORS[1], linestyle="--", label=f"{word['best']} {suggestion:.2g}")
            ax.legend()
        if len(losses):                                     # the explosion at the end would flatten all before it
            ax.set_ylim(top=min(losses.max(), 2 * losses[0]) * 1.02)
        ax.set_xlabel(word["lr"], color=GREY)
        ax.set_ylabel(word["loss"], color=GREY)
        ax.set_title(word["title"], color=INK)
        return _save(figure, Path(path))

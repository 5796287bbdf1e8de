"""A confusion matrix as a picture: rows are what was right, columns what was chosen."""
from pathlib import Path

import numpy as np

from tools.plot import _save
from tools.pictures.style import GREY, INK, Page

WORDS = {"title": ("专家选择门：混淆矩阵", "Gate: confusion matrix"), "right": ("损失最低的专家", "expert with the lowest loss"),
         "chosen": ("门选的专家", "expert the gate picked"), "accuracy": ("准确率", "accuracy")}


def draw_confusion(counts, names, path):
    """counts (X, X) numbers, names of the X classes -> path of the picture. UserError 2 or 7 where it cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure
    counts, page = np.asarray(counts, dtype=float), Page()
    word = {key: pair[0 if page.chinese else 1] for key, pair in WORDS.items()}
    names, size = [page.text(name) for name in names], len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with matplotlib.rc_context({**page.rc(), "axes.grid": False}):
        figure = Figure(figsize=(3.6 + 0.9 * size, 3.0 + 0.8 * size), dpi=120, layout="constrained")
        ax = figure.add_subplot()
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(size, size):
            ax.text(column, row, f"{counts[row, column]:g}\n{share[row, column]:.0%}", ha="center", va="center", fontsize=9,
                    color="white" if share[row, column] > 0.55 else INK)
        ax.set_xticks(range(size), names, rotation=30, ha="right")
        ax.set_yticks(range(size), names)
        ax.set_xlabel(word["chosen"], color=GREY)
        ax.set_ylabel(word["right"], color=GREY)
        right = np.trace(counts) / max(1, counts.sum())
        ax.set_title(f"{word['title']} · {word['accuracy']} {right:.1%}", color=INK)
        return _save(figure, Path(path))

"""The picture of a preference alignment: loss, rewards of both replies, margin and accuracy over the steps, training and held-out."""
from pathlib import Path

import numpy as np

from tools.logs.reader import read_log
from tools.plot import COLORS, _save, curve, thinned
from tools.pictures.style import GREY, INK, Page

PANELS = {"loss": ("损失（ln 2 = 还没有偏好）", "loss (ln 2 = no preference yet)"), "reward": ("奖励", "rewards"),
          "margin": ("间隔：选中的奖励 − 落选的奖励", "margin: chosen − rejected"), "accuracy": ("偏好准确率", "preference accuracy")}
FIELDS = {"loss": [("ce_1", "", "")], "reward": [("reward_chosen", "选中", "chosen"), ("reward_rejected", "落选", "rejected")],
          "margin": [("margin", "", "")], "accuracy": [("accuracy", "", "")]}
NEUTRAL = {"loss": np.log(2), "reward": 0, "margin": 0, "accuracy": 0.5}


def draw_preference(log_dir, path=None):
    """The newest run of the stage dpo in log_dir -> path of the picture (default log_dir/dpo_preference.png). UserError 2 or 7."""
    newest = max(Path(log_dir).glob("dpo_2*.jsonl"), key=lambda p: (p.stat().st_mtime, p.name))
    return draw_run(read_log(newest)[-1], path or Path(log_dir, "dpo_preference.png"))


def held_out(run, field):
    """(steps, values) of a field at the evaluations."""
    found = [(e["step"], e[f"eval_{field}"]) for e in run.events if f"eval_{field}" in e]
    return np.array(found, dtype=float).reshape(-1, 2).T


def draw_run(run, path):
    """run: a log_reader.Run -> path."""
    import matplotlib
    from matplotlib.figure import Figure
    page = Page()
    language = 0 if page.chinese else 1
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
        for ax, (panel, titles) in zip(figure.subplots(2, 2).flat, PANELS.items()):
            for color, (field, *names) in zip(COLORS, FIELDS[panel]):
                x, raw, smooth = curve(run, field)
                ax.plot(*thinned(x, raw), color=color, alpha=0.25)
                ax.plot(*thinned(x, smooth), color=color, linewidth=1.9, label=f"{page.word('train')} {names[language]}".strip())
                steps, values = held_out(run, field)
                if len(steps):
                    ax.plot(steps, values, "o--", color=color, markerfacecolor="white", label=f"{page.word('eval')} {names[language]}".strip())
            ax.axhline(NEUTRAL[panel], color=GREY, linewidth=0.8)
            ax.set_title(titles[language], color=INK)
            ax.set_xlabel(page.word("step"), color=GREY)
            ax.legend()
        return _save(figure, Path(path))

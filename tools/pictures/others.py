"""The pictures that belong to one stage or search each: learning-rate search, the gate's confusion matrix, a preference
alignment."""
from pathlib import Path

import numpy as np

from tools.logs.reader import read_log
from tools.pictures.style import COLORS, GREY, INK, Page, curve, dress, save, smoothed, thinned

WORDS = {"search": ("寻找学习率", "Learning-rate finder"), "lr": ("学习率", "learning rate"), "loss": ("损失", "loss"),
         "suggested": ("建议", "suggested"), "gate": ("选择门：混淆矩阵", "Gate: confusion matrix"),
         "right": ("损失最低的候选模型", "model with the lowest loss"), "chosen": ("选择门选的", "model the gate picked"),
         "accuracy": ("准确率", "accuracy")}


def _words(page):
    return {key: pair[0 if page.chinese else 1] for key, pair in WORDS.items()}


def draw_lr_curve(history, suggestion, path):
    """history [{"lr", "loss"}], suggestion a rate or None -> path of the picture. UserError 2 or 7 where it cannot be
    written."""
    import matplotlib
    from matplotlib.figure import Figure
    page = Page()
    word = _words(page)
    rates, losses = (np.array([point[k] for point in history], dtype=float) for k in ("lr", "loss"))
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
        ax = figure.add_subplot()
        ax.plot(rates, losses, color=COLORS[0], alpha=0.3)
        ax.plot(rates, smoothed(losses, 0.8), color=COLORS[0], linewidth=2)
        ax.set_xscale("log")
        if suggestion is not None:
            ax.axvline(suggestion, color=COLORS[1], linestyle="--", label=f"{word['suggested']} {suggestion:.2g}")
            ax.legend()
        if len(losses):                                     # the explosion at the end would flatten all before it
            ax.set_ylim(top=min(losses.max(), 2 * losses[0]) * 1.02)
        ax.set_xlabel(word["lr"], color=GREY)
        ax.set_ylabel(word["loss"], color=GREY)
        ax.set_title(word["search"], fontweight=page.bold, color=INK)
        return save(figure, path)


def draw_confusion(counts, names, path):
    """counts (X, X): rows what was right, columns what was chosen; names of the X classes -> path. UserError 2 or 7."""
    import matplotlib
    from matplotlib.figure import Figure
    counts, page = np.asarray(counts, dtype=float), Page()
    word, names, size = _words(page), [page.text(name) for name in names], len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with matplotlib.rc_context({**page.rc(), "axes.grid": False}):
        figure = Figure(figsize=(3.6 + 0.9 * size, 3.0 + 0.8 * size), dpi=120, layout="constrained")
        ax = figure.add_subplot()
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(size, size):
            ax.text(column, row, f"{counts[row, column]:g}\n{share[row, column]:.0%}", ha="center", va="center",
                    fontsize=9,
                    color="white" if share[row, column] > 0.55 else INK)
        ax.set_xticks(range(size), names, rotation=30, ha="right")
        ax.set_yticks(range(size), names)
        ax.set_xlabel(word["chosen"], color=GREY)
        ax.set_ylabel(word["right"], color=GREY)
        right = np.trace(counts) / max(1, counts.sum())
        ax.set_title(f"{word['gate']} · {word['accuracy']} {right:.1%}", fontweight=page.bold, color=INK)
        return save(figure, path)


# ---------------------------------------------------------------- a preference alignment

# panel -> (titles, [(field, Chinese name, English name)], the value that says nothing)
PREFERENCE = {
    "loss": (("损失（ln 2 = 还没有偏好）", "Loss (ln 2 = no preference yet)"), [("ce_1", "", "")], np.log(2)),
    "reward": (("奖励", "Rewards"), [("reward_chosen", "选中", "chosen"), ("reward_rejected", "落选", "rejected")], 0),
    "margin": (("间隔：选中的奖励 − 落选的奖励", "Margin: chosen − rejected"), [("margin", "", "")], 0),
    "accuracy": (("偏好准确率", "Preference accuracy"), [("accuracy", "", "")], 0.5)}


# The same of a reinforcement learning.
REWARDS = {
    "reward": (("奖励", "Reward"), [("reward", "", "")], 0),
    "success": (("答对的比例", "Success"), [("success", "取样", "sampled"), ("accuracy", "", "")], 0.5),
    "groups": (("整组全对、全错", "Solved and hopeless groups"),
               [("solved", "全对", "solved"), ("hopeless", "全错", "hopeless")], 0),
    "length": (("回答的词元数", "Tokens of a reply"), [("length", "", "")], 0)}


def draw_preference(log_dir, path=None):
    """The newest run of the stage dpo in log_dir -> path of the picture (default log_dir/dpo_preference.png). UserError
    2 or 7."""
    return draw_run(newest_run(log_dir, "dpo"), path or Path(log_dir, "dpo_preference.png"), "DPO", PREFERENCE)


def draw_rewards(log_dir, path=None):
    """The same of the stage rl, default log_dir/rl_rewards.png."""
    return draw_run(newest_run(log_dir, "rl"), path or Path(log_dir, "rl_rewards.png"), "RL", REWARDS)


def newest_run(log_dir, stage):
    return read_log(max(Path(log_dir).glob(f"{stage}_2*.jsonl"), key=lambda p: (p.stat().st_mtime, p.name)))[-1]


def held_out(run, field):
    """(steps, values) of a field at the evaluations."""
    found = [(e["step"], e[f"eval_{field}"]) for e in run.events if f"eval_{field}" in e]
    return np.array(found, dtype=float).reshape(-1, 2).T


def draw_run(run, path, title, panels):
    """run: a reader.Run; panels: four, as PREFERENCE -> path."""
    import matplotlib
    from matplotlib.figure import Figure
    page = Page()
    language = 0 if page.chinese else 1
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        for ax, (titles, fields, neutral) in zip(figure.subplots(2, 2).flat, panels.values()):
            dress(ax, page, titles[language], page.word("step"))
            ax.axhline(neutral, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
            for color, (field, *names) in zip(COLORS, fields):
                x, raw, smooth = curve(run, field)
                ax.plot(*thinned(x, raw), color=color, alpha=0.28, linewidth=0.9)
                ax.plot(*thinned(x, smooth), color=color, linewidth=1.9,
                        label=f"{names[language]} {page.word('train')}".strip())
                steps, values = held_out(run, field)
                if len(steps):
                    ax.plot(steps, values, color=color, linewidth=1.2, linestyle=(0, (4, 2)), marker="o", markersize=5,
                            markerfacecolor="white", label=f"{names[language]} {page.word('eval')}".strip())
            ax.legend()
        figure.suptitle(f"{title} · {page.word('curves')}", x=0.012, ha="left", fontsize=16, fontweight=page.bold,
                        color=INK)
        return save(figure, path)

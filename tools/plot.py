"""Training curves from log.txt or logs/*.jsonl, as PNG: `draw_plt(process, log)` and `python tools/plot.py log.txt
[more.txt]`.

A raw line is pale and has a gap where a value is NaN or infinite (a red tick at the foot marks the place), a smoothed
one is strong and goes on. Matplotlib's global state is left alone, so that a notebook or a trainer may call this at any
time.
"""
import os
import re
import sys
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: a missing package ends in one line

import numpy as np

from tools.cli import guarded, parse
from tools.errors import UserError
from tools.logs.reader import read_log
from tools.pictures.style import (  # noqa: F401
    COLORS, GREY, INK, Page, curve, dress, power_tick, save, short_tick, smoothed, thinned)

LOGARITHMIC = ("ppx_1", "ppx_2", "grad_norm")

# One run as it is drawn: shifted to the right by `start` steps where runs follow one another.
Track = namedtuple("Track", "run label color start")


# ---------------------------------------------------------------- drawing

def _panel(ax, page, name, tracks):
    """One field of all tracks on one pair of axes."""
    seen, seen_smooth = [], []
    for track in tracks:
        x, raw, smooth = curve(track.run, name, page.smooth, track.start)
        if not np.isfinite(raw).any():
            continue
        raw, smooth = np.clip([raw, smooth], -1e36, 1e36)         # matplotlib's own sums overflow further out
        ax.plot(*thinned(x, raw), color=track.color, alpha=0.28, linewidth=0.9, zorder=1.5,
                marker="o" if len(x) == 1 else None)
        label = _named(page, track) if len(tracks) > 1 else page.word("train")
        ax.plot(*thinned(x, smooth), color=track.color, linewidth=1.9, solid_capstyle="round", label=label)
        bad = x[np.isnan(raw)]
        ax.plot(bad, np.full(len(bad), 0.012), "|", color="#dc2626", markersize=7, transform=ax.get_xaxis_transform())
        seen, seen_smooth = seen + [raw[np.isfinite(raw)]], seen_smooth + [smooth[np.isfinite(smooth)]]
    if name == "loss":
        seen += _evaluations(ax, page, tracks)
    dress(ax, page, page.title(name))
    if not seen:
        ax.text(0.5, 0.5, page.word("none"), ha="center", va="center", color="#9ca3af", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return
    _scale(ax, name, np.concatenate(seen))
    starts = [track.start for track in tracks]
    if starts == sorted(set(starts)):                   # one log: its runs follow one another
        for x in starts[1:]:
            ax.axvline(x, color="#9ca3af", linewidth=0.8, linestyle=(0, (3, 3)))
    note = f"{page.word('last')} {seen_smooth[0][-1]:.4g}" if len(tracks) == 1 and seen_smooth else ""
    if name == "loss" and any(track.run.evaluations() for track in tracks[1:]):
        note = page.word("dashed")
    ax.set_title(note, loc="right", color=GREY, fontsize=9)


def _evaluations(ax, page, tracks):
    """Held-out losses as marked lines; returns the values drawn."""
    values, marks = [], "ods^vP"
    for track in tracks:
        for i, (name, (x, y)) in enumerate(track.run.evaluations().items()):
            label = page.held_out(name)
            color = track.color if len(tracks) > 1 else COLORS[(i + 1) % len(COLORS)]
            ax.plot(x + track.start, y, color=color, linewidth=1.2, linestyle=(0, (4, 2)), marker=marks[i % len(marks)],
                    markersize=5, markerfacecolor="white", markevery=max(1, len(x) // 40),
                    label=label if len(tracks) == 1 else f"{_named(page, track)} · {label}")
            values += [np.clip(y[np.isfinite(y)], -1e36, 1e36)] if np.isfinite(y).any() else []
    return values


def _scale(ax, name, values):
    """Axes that show the bulk of the values, not stretched by a single spike; perplexities and norms are always
    logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullFormatter
    low, high = np.min(values), np.max(values)
    body = np.percentile(values, 99.5)
    if name in LOGARITHMIC and low > 0:
        low, high = low / 1.15, min(high, body * 100) * 1.15
        ax.set_ylim(low, high)                          # first: a scale of its own choosing complains of a single value
        ax.set_yscale("log")
        plain = high < 1e5 and low >= 0.01
        if high < 10 * low:                             # hardly a power of ten in sight
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(short_tick) if plain else LogFormatterSciNotation())
        ax.yaxis.set_minor_formatter(NullFormatter())
        return
    if high - low > 4 * (body - low) > 0:               # a spike, nothing else, reaches beyond
        high = body + 0.5 * (body - low)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - pad, high + pad)
    if name == "tok_s":
        ax.set_ylim(0, high * 1.1 or 1.0)
        ax.yaxis.set_major_formatter(FuncFormatter(short_tick))
    elif name == "lr":
        ax.set_ylim(0 if low >= 0 else low, high * 1.08 or 1.0)
        ax.yaxis.set_major_formatter(FuncFormatter(power_tick))


def _summary(ax, page, tracks):
    """The free cell of the overview: which colour is which run, and what it came to."""
    ax.set_axis_off()
    room = 7
    shown = tracks[:room if len(tracks) <= room else room - 1]
    for i, track in enumerate(shown):
        y = 0.97 - i * 0.145
        ax.plot([0.0, 0.055], [y, y], color=track.color, linewidth=3, transform=ax.transAxes, clip_on=False,
                solid_capstyle="round")
        ax.text(0.085, y, _named(page, track), fontweight=page.bold, fontsize=10, va="center",
                transform=ax.transAxes)
        loss = curve(track.run, "loss", page.smooth)[2]
        parts = [f"{short_tick(track.run.step[-1])} {page.word('steps')}" if len(track.run) else ""]
        if np.isfinite(loss).any():
            parts.append(f"{page.title('loss')} {loss[np.isfinite(loss)][-1]:.4g}")
        for name, (_, values) in list(track.run.evaluations().items())[:2]:
            if np.isfinite(values).any():
                parts.append(f"{page.held_out(name)} {page.word('best')} "
                             f"{np.nanmin(np.where(np.isfinite(values), values, np.nan)):.4g}")
        ax.text(0.085, y - 0.068, " · ".join(p for p in parts if p), fontsize=9, color=GREY, va="center",
                transform=ax.transAxes)
    if len(tracks) == 1:                                # room for what the run was
        known = ("event", "time", "run", "step", "resume", "stage", "start")
        facts = [(key, value) for key, value in tracks[0].run.header.items() if key not in known and "." not in key]
        for i, (key, value) in enumerate(facts[:9]):
            ax.text(0.085, 0.78 - i * 0.095, page.text(page.fact(key)), color="#9ca3af", fontsize=9,
                    transform=ax.transAxes)
            ax.text(0.36, 0.78 - i * 0.095, page.text(value)[:40], fontsize=9, transform=ax.transAxes)
    if len(shown) < len(tracks):
        ax.text(0.085, 0.97 - len(shown) * 0.145, f"{page.word('more')} {len(tracks) - len(shown)}", color=GREY,
                transform=ax.transAxes)


def _overview(page, tracks, title):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(15, 10.2), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
    grid = figure.add_gridspec(3, 3)
    cells = {"loss": grid[0, :2], "ppx_1": grid[1, 0], "ppx_2": grid[1, 1], "lr": grid[1, 2],
             "grad_norm": grid[2, 0], "lexp": grid[2, 1], "tok_s": grid[2, 2]}
    for name, cell in cells.items():
        ax = figure.add_subplot(cell)
        _panel(ax, page, name, tracks)
        if name in ("loss", "grad_norm", "lexp", "tok_s"):
            ax.set_xlabel(page.word("step"))
        if name == "loss" and len(tracks) == 1 and len(ax.get_legend_handles_labels()[0]) > 1:
            ax.legend(loc="upper right")
    _summary(figure.add_subplot(grid[0, 2]), page, tracks)
    figure.suptitle(page.text(title), x=0.012, ha="left", fontsize=16, fontweight=page.bold, color=INK)
    return figure


def _single(page, tracks, name):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
    ax = figure.add_subplot()
    _panel(ax, page, name, tracks)
    ax.set_xlabel(page.word("step"))
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(loc="best")
    return figure


# ---------------------------------------------------------------- what people call

def tracks_of(runs_by_log):
    """[(log's name, its runs)] -> list[Track]: the runs of one log follow one another, several logs all begin at 0."""
    tracks = []
    for log, runs in runs_by_log:
        start = 0.0
        for i, run in enumerate(runs):
            label = f"{run.header.get('stage', '')} {run.header.get('start', '')}".strip() or (f"#{i + 1}"
                if len(runs) > 1 else log)
            # The log's name tells them apart; a .jsonl has stage and start in it
            if len(runs_by_log) > 1:
                label = log if len(runs) == 1 else f"{log} · {label}"
            tracks.append(Track(run, label, COLORS[len(tracks) % len(COLORS)], start))
            start += run.step[-1] if len(run) else 0
    return tracks


def _named(page, track):
    """A track's label as it is shown, its stage in words."""
    stage, start = (str(track.run.header.get(key, "")) for key in ("stage", "start"))
    return short_label(page.text(track.label.replace(f"{stage} {start}", f"{page.stage(stage)} {start}")))


def short_label(text, room=40):
    """Both ends of a long name: what differs stands there."""
    return text if len(text) <= room else f"{text[:room // 2 - 1]}…{text[-room // 2:]}"


def _runs(path):
    runs = [run for run in read_log(path) if len(run)]
    if not runs:
        raise UserError(f"日志 {path} 里还没有训练记录。请先训练几步，或检查是不是选错了文件。")
    return runs


def draw_plt(process_name, log_name, out_dir=None, smooth=None):
    """Draw <process>_loss.png, _ppx_1.png, _ppx_2.png, _lr.png and the overview <process>_curves.png; returns their
    paths.

    The newest run whose stage is `process_name` (any case) is drawn, or every run of the log where no stage has that
    name.
    out_dir: by default `logs` beside the log, where there is one, else the log's own folder."""
    import matplotlib
    runs = _runs(log_name)
    own = [run for run in runs if str(run.header.get("stage", "")).lower() == str(process_name).lower()]
    folder = Path(log_name).resolve().parent
    out_dir = Path(out_dir) if out_dir else folder / "logs" if (folder / "logs").is_dir() else folder
    tracks, page = tracks_of([(Path(log_name).name, own[-1:] or runs)]), Page(smooth)
    stem = re.sub(r'[\\/:*?"<>|\s]+', "_", str(process_name)) or "train"
    with matplotlib.rc_context(page.rc()):
        paths = [save(_single(page, tracks, name), out_dir / f"{stem}_{name}.png")
                 for name in ("loss", "ppx_1", "ppx_2", "lr")]
        overview = _overview(page, tracks, f"{page.stage(str(process_name))} · {page.word('curves')}")
        return paths + [save(overview, out_dir / f"{stem}_curves.png")]


def draw_logs(paths, output=None, smooth=None):
    """One overview of all runs of all logs; returns its path (by default <first log>_curves.png beside that log)."""
    import matplotlib
    names = [Path(p).name for p in paths]
    if len(set(names)) < len(names):                    # out/a/log.txt, out/b/log.txt
        common = os.path.commonpath([Path(p).resolve().parent for p in paths])
        names = [os.path.relpath(Path(p).resolve(), common) for p in paths]
    tracks, page = tracks_of([(name, _runs(path)) for name, path in zip(names, paths)]), Page(smooth)
    output = Path(output) if output else Path(paths[0]).with_name(Path(paths[0]).stem + "_curves.png")
    with matplotlib.rc_context(page.rc()):
        title = f"{page.word('curves')} · {names[0]}" if len(names) == 1 else page.word("curves")
        return save(_overview(page, tracks, title), output)


def _weight(text):
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


OPTIONS = [("logs", {"nargs": "+", "metavar": "日志", "help": "log.txt 或 logs/*.jsonl；给出多个时画在一张图里比较"}),
           ("--output", {"metavar": "图.png", "help": "图片存到哪里（默认在第一个日志旁边）"}),
           ("--smooth", {"type": _weight, "metavar": "数", "help": "平滑程度，0 到 1 之间，0 为不平滑（默认按长度自动选）"})]


def main(argv=None):
    options = parse(argv, "把训练日志画成曲线：损失、两个困惑度、学习率、梯度范数、Lexp、速度。", extra=OPTIONS, reads=())[1]
    print("曲线已画好：", draw_logs(options.logs, options.output, options.smooth), sep="")


if __name__ == "__main__":
    guarded(main)

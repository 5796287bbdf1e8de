"""bench/results/*.jsonl -> bench/RESULTS.md, a curve beside it, and the tables of docs/options.md and docs/results.md.
None of it is written by hand.

    python bench/results_page.py

Each file of committed JSON lines is one table: equal conditions within, the best on top. A first line {"title", "note",
...} without a label says in plain words what was compared and what follows from it.
"""

import json
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

HERE = Path(__file__).resolve().parent
OPTIONS = HERE / "results/2_options.jsonl"
OPTIONS_PAGE, RUNS_PAGE = ROOT / "docs/options.md", ROOT / "docs/results.md"
MARKS = {name: (f"<!-- {name}: python bench/results_page.py -->", f"<!-- /{name} -->") for name in ("options", "runs")}
RUNS = ("fast 60", "fast", "default")                   # labels that docs/results.md shows
OPENING = """# 同样的时间，能学到多好？

本页由 `python bench/results_page.py` 从 `bench/results/*.jsonl` 生成，不要手改；不好的结果也在里面。

数据：约 1000 万字的公开中文文本（`../shared/data/text.jsonl`）。从 0 数，行号能被 50 整除的行留出、整行打分，其余用来训练；词表也只看训练行。
指标是留出文本的**比特/字**（bits per character，每个字符都算，越低越好）。计时只含训练步，学习率规则在时间用完时正好走完。
"""


def read(folder):
    """-> [(notes, lines)] of each file of runs, in the order of their names; gpu.jsonl is something else."""
    return [read_file(path) for path in sorted(Path(folder).glob("*.jsonl")) if path.name != "gpu.jsonl"]


def read_file(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    notes = [line for line in lines if "title" in line]
    return notes[0] if notes else {"title": path.stem}, [line for line in lines if "label" in line]


def final_bits(line):
    return list(line["bits_per_char"].values())[-1]


def mean_bits(group):
    return statistics.fmean(map(final_bits, group))


def default_bits(groups):
    """Mean of the lines labelled default, None without any."""
    return next((mean_bits(group) for label, group in groups if label == "default"), None)


def at_equal_steps(lines):
    """{label: (mean bits per character, their standard deviation)} brought to the steps of the default, and those
    steps; {} and None without a default or without two runs of any label.

    One slope of bits against ln(steps), fitted within labels: how many steps a run made is mostly the machine's doing.
    """
    groups = by_label(lines)
    base = next((group for label, group in groups if label == "default"), None)
    offsets = [(math.log(line["steps"]) - center, final_bits(line) - mean_bits(group)) for _, group in groups
               for center in [statistics.fmean(math.log(one["steps"]) for one in group)] for line in group]
    spread = sum(x * x for x, _ in offsets)
    if base is None or not spread:
        return {}, None
    slope = sum(x * y for x, y in offsets) / spread
    steps = round(statistics.fmean(line["steps"] for line in base))
    found = {}
    for label, group in groups:
        bits = [final_bits(line) - slope * math.log(line["steps"] / steps) for line in group]
        found[label] = statistics.fmean(bits), statistics.stdev(bits) if len(bits) > 1 else None
    return found, steps


def by_label(lines):
    """[(label, its lines)], the best mean first."""
    found = {}
    for line in lines:
        found.setdefault(line["label"], []).append(line)
    return sorted(found.items(), key=lambda item: mean_bits(item[1]))


def table(lines):
    groups = by_label(lines)
    base = default_bits(groups)
    equal, steps = at_equal_steps(lines)
    rows = [
        f"| label | bits/char | worst | vs default | at {steps or 'equal'} steps (sd) | seeds | seconds | tokens/s "
        "| steps | parameters | keys | commit |", "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---|---|"]
    for label, group in groups:
        bits = [final_bits(line) for line in group]
        first, mean = group[0], mean_bits(group)
        keys = " ".join(f"{k}={v}" for k, v in _own_keys(first).items())
        rows.append(f"| {label} | {mean:.3f} | {max(bits):.3f} | {'' if base is None else f'{mean - base:+.3f}'} | "
                    f"{told(equal.get(label))} | {','.join(str(line['seed']) for line in group)} "
                    f"| {first['train_seconds']:.0f} {first['clock']} × {first['threads']} | "
                    f"{statistics.fmean(line['tokens_per_s'] for line in group):.0f} | {first['steps']} "
                    f"| {first['parameters'] / 1e6:.2f} M | {keys} | {first['commit']} |")
    return "\n".join(rows)


def told(found):
    """A pair of `at_equal_steps` as a cell."""
    if found is None:
        return ""
    mean, deviation = found
    return f"{mean:.3f}" + (f" ({deviation:.3f})" if deviation is not None else "")


def _own_keys(line):
    """What the command line said, without what every run says."""
    boring = ("threads", "seed", "pre.seed")
    keys = {"preset": line["preset"]} if line["preset"] else {}
    return keys | {k: v for k, v in line["keys"].items() if k not in boring}


def page(tables):
    parts = [OPENING]
    for notes, lines in tables:
        parts += [f"## {notes['title']}", *([notes["note"]] if "note" in notes else []),
                  table(lines) if lines else "（还没有结果）"]
        parts += [f"**结论**：{notes['verdict']}"] if notes.get("verdict") else []
    parts += ["![bits per character against minutes](quality.png)"] if drawn(tables) else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def options_table(lines):
    """The table of docs/options.md: one line per option, the best first."""
    groups = by_label(lines)
    base = default_bits(groups)
    equal, _ = at_equal_steps(lines)
    rows = ["| 选项 | 比特/字 | 同样的时间，与默认相差 | 同样的步数，与默认相差 | 词元/秒 | 种子数 |", "|---|---:|---:|---:|---:|---:|"]
    for label, group in groups:
        bits, speed = mean_bits(group), statistics.fmean(line["tokens_per_s"] for line in group)
        rows.append(f"| `{label}` | {bits:.3f} | {bits - base:+.3f} | {equal[label][0] - equal['default'][0]:+.3f} "
                    f"| {speed:,.0f} | {len({line['seed'] for line in group})} |")
    return "\n".join(rows)


def runs_table(tables):
    """The table of docs/results.md: how large, how long, how good."""
    rows = ["| 做什么 | 参数 | 训练时间 | 步数 | 留出文本，比特/字 | 种子数 | 提交 |", "|---|---:|---:|---:|---|---:|---|"]
    for label in RUNS:
        group = [line for _, lines in tables for line in lines if line["label"] == label]
        bits, steps = sorted(map(final_bits, group)), sorted(line["steps"] for line in group)
        clock = f"{group[0]['train_seconds'] / 60:.0f} 分钟（{group[0]['threads']} 核）"
        rows.append(
            f"| {'默认结构' if label == 'default' else '预设 `fast`'} | {group[0]['parameters'] / 1e6:.1f} M | {clock} "
                    f"| {between(steps, ',')} | {between(bits, '.2f')} | {len({line['seed'] for line in group})} "
                    f"| {' '.join(sorted({line['commit'] for line in group}))} |")
    return "\n".join(rows)


def pages(tables):
    """[(page of the docs, name of its marks, the table between them)]"""
    return [(OPTIONS_PAGE, "options", options_table(read_file(OPTIONS)[1])), (RUNS_PAGE, "runs", runs_table(tables))]


def between(values, form):
    low, high = (format(value, form) for value in (values[0], values[-1]))
    return low if low == high else f"{low}～{high}"


def with_table(text, name, table):
    """A page with the table between its two marks made anew."""
    opening, closing = MARKS[name]
    before, rest = text.split(opening)
    return before + opening + "\n" + table + "\n" + closing + rest.split(closing)[1]


def drawn(tables):
    """The lines whose curves are shown."""
    return [line for notes, lines in tables if notes.get("draw") for line in lines]


WORDS = {"title": ("同样的训练时间，学到多好", "How good after the same time"), "x": ("训练的分钟数（对数）", "minutes of training (log)"),
         "y": ("留出文本的比特/字，越低越好", "held-out bits per character, lower is better"), "seeds": ("个种子", "seeds"),
         "last": ("最后一点：全部留出行（途中只抽一部分）", "last point: all held-out rows (on the way a sample of them)")}


def draw_curves(lines, path):
    """Bits per character against minutes of training, one colour per label. The last point of a curve was scored on all
    held-out rows, the others on a sample of them: it stands apart."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from tools.pictures.style import COLORS, GREY, INK, Page, save, short_tick
    page, labels = Page(), list(dict.fromkeys(line["label"] for line in lines))
    word = {key: pair[0 if page.chinese else 1] for key, pair in WORDS.items()}
    with matplotlib.rc_context(page.rc()):
        figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
        ax = figure.add_subplot()
        for label, color in zip(labels, COLORS * len(labels)):
            curves = [line["curve"] for line in lines if line["label"] == label]
            for number, curve in enumerate(curves):
                told = f"{page.text(label)}（{len(curves)} {word['seeds']}）" if len(curves) > 1 else page.text(label)
                ax.plot(*zip(*(curve[:-1] or curve)), color=color, linewidth=1.6, marker="o", markersize=2.5,
                        label=None if number else told)
                ax.plot(*curve[-1], color=color, marker="D", markersize=7, markerfacecolor="white",
                        markeredgewidth=1.6, linestyle="")
        ax.plot([], [], color=GREY, marker="D", markersize=7, markerfacecolor="white", markeredgewidth=1.6,
                linestyle="", label=word["last"])
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(short_tick))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(word["x"], color=GREY)
        ax.set_ylabel(word["y"], color=GREY)
        ax.set_title(word["title"], fontweight=page.bold, color=INK)
        ax.legend()
        save(figure, path)


def main():
    tables = read(HERE / "results")
    (HERE / "RESULTS.md").write_text(page(tables), encoding="utf-8")
    for page_, name, made in pages(tables):
        page_.write_text(with_table(page_.read_text(encoding="utf-8"), name, made), encoding="utf-8")
    if drawn(tables):
        draw_curves(drawn(tables), HERE / "quality.png")
    print(json.dumps({"tables": len(tables), "runs": sum(len(lines) for _, lines in tables)}))


if __name__ == "__main__":
    main()

"""bench/results/*.jsonl -> bench/RESULTS.md, a curve beside it, and the README's table of options. None of it is written by hand.

    python bench/results_page.py

Each file of committed JSON lines is one table: equal conditions within, the best on top. A first line {"title", "note", ...}
without a label says in plain words what was compared and what follows from it.
"""

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

HERE = Path(__file__).resolve().parent
OPTIONS = HERE / "results/2_options.jsonl"
README = (ROOT / "README.md", ROOT / "README_en.md")
MARKS = ("<!-- options: python bench/results_page.py -->", "<!-- /options -->")
OPENING = """# 同样的时间，能学到多好？

本页由 `python bench/results_page.py` 从 `bench/results/*.jsonl` 生成，不要手改；不好的结果也在里面。

数据：约 1000 万字的公开中文文本（`../shared/data/text.jsonl`）。从 0 数，行号能被 50 整除的行留出、整行打分，其余用来训练；词表也只看训练行。
指标是留出文本的**比特/字**（bits per character，每个字符都算，越低越好）。计时只含训练步，学习率规则在时间用完时正好走完。
"""


def read(folder):
    """-> [(notes, lines)] of each file, in the order of their names."""
    return [read_file(path) for path in sorted(Path(folder).glob("*.jsonl"))]


def read_file(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    notes = [line for line in lines if "title" in line]
    return notes[0] if notes else {"title": path.stem}, [line for line in lines if "label" in line]


def final_bits(line):
    return list(line["bits_per_char"].values())[-1]


def mean_bits(group):
    return statistics.fmean(map(final_bits, group))


def default_bits(lines):
    """{series: mean bits of its lines labelled default}. A series was measured in one go; on another day the machine is faster or slower."""
    found = {}
    for line in lines:
        if line["label"] == "default":
            found.setdefault(line.get("series"), []).append(line)
    return {series: mean_bits(group) for series, group in found.items()}


def compared(group, base):
    """Mean difference of the lines to the default of their own series, None where there is none."""
    differences = [final_bits(line) - base[line.get("series")] for line in group if line.get("series") in base]
    return statistics.fmean(differences) if differences else None


def by_label(lines):
    """[(label, its lines, its difference to the default)], the best first."""
    found, base = {}, default_bits(lines)
    for line in lines:
        found.setdefault(line["label"], []).append(line)
    groups = [(label, group, compared(group, base)) for label, group in found.items()]
    return sorted(groups, key=lambda g: mean_bits(g[1]) if g[2] is None else g[2])


def table(lines):
    rows = ["| label | bits/char | worst | vs default | seeds | seconds | tokens/s | steps | parameters | keys | commit |",
            "|---|---:|---:|---:|---|---:|---:|---:|---:|---|---|"]
    for label, group, difference in by_label(lines):
        bits, first = [final_bits(line) for line in group], group[0]
        keys = " ".join(f"{k}={v}" for k, v in _own_keys(first).items())
        rows.append(f"| {label} | {mean_bits(group):.3f} | {max(bits):.3f} | {'' if difference is None else f'{difference:+.3f}'} | "
                    f"{','.join(str(seed) for seed in sorted(line['seed'] for line in group))} | {first['train_seconds']:.0f} {first['clock']} × {first['threads']} | "
                    f"{statistics.fmean(line['tokens_per_s'] for line in group):.0f} | {first['steps']} | {first['parameters'] / 1e6:.2f} M | "
                    f"{keys} | {first['commit']} |")
    return "\n".join(rows)


def _own_keys(line):
    """What the command line said, without what every run says."""
    boring = ("threads", "seed", "pre.seed")
    keys = {"preset": line["preset"]} if line["preset"] else {}
    return keys | {k: v for k, v in line["keys"].items() if k not in boring}


def page(tables):
    parts = [OPENING]
    for notes, lines in tables:
        parts += [f"## {notes['title']}", *([notes["note"]] if "note" in notes else []), table(lines) if lines else "（还没有结果）"]
        parts += [f"**结论**：{notes['verdict']}"] if notes.get("verdict") else []
    parts += ["![bits per character against minutes](quality.png)"] if drawn(tables) else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def options_table(lines, header):
    """The README's table: one line per option, the best first."""
    rows = ["| " + " | ".join(header) + " |", "|---|---:|---:|---:|---:|"]
    for label, group, difference in by_label(lines):
        speed = statistics.fmean(line["tokens_per_s"] for line in group)
        rows.append(f"| `{label}` | {mean_bits(group):.3f} | {difference:+.3f} | {speed:,.0f} | {len(group)} |")
    return "\n".join(rows)


def with_options(text, lines):
    """A README with the table between its two marks made anew."""
    before, rest = text.split(MARKS[0])
    old, after = rest.split(MARKS[1])
    header = [cell.strip() for cell in old.strip().splitlines()[0].strip("| ").split("|")]
    return before + MARKS[0] + "\n" + options_table(lines, header) + "\n" + MARKS[1] + after


def drawn(tables):
    """The lines whose curves are shown."""
    return [line for notes, lines in tables if notes.get("draw") for line in lines]


def draw_curves(lines, path):
    """Bits per character against minutes of training, one curve per label and seed."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colours = {}
    for line in lines:
        colour = colours.setdefault(line["label"], f"C{len(colours) % 10}")
        minutes, bits = zip(*line["curve"])
        seen = colour in [c.get_color() for c in axes.get_lines()]
        axes.plot(minutes, bits, color=colour, marker="o", markersize=3, linewidth=1.2, label=None if seen else line["label"])
    axes.set(xlabel="minutes of training", ylabel="held-out bits per character")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main():
    tables = read(HERE / "results")
    (HERE / "RESULTS.md").write_text(page(tables), encoding="utf-8")
    options = read_file(OPTIONS)[1]
    for readme in README:
        readme.write_text(with_options(readme.read_text(encoding="utf-8"), options), encoding="utf-8")
    if drawn(tables):
        draw_curves(drawn(tables), HERE / "quality.png")
    print(json.dumps({"tables": len(tables), "runs": sum(len(lines) for _, lines in tables)}))


if __name__ == "__main__":
    main()

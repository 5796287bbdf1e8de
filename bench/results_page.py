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

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

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


def default_bits(groups):
    """Mean of the lines labelled default, None without any."""
    return next((mean_bits(group) for label, group in groups if label == "default"), None)


def by_label(lines):
    """[(label, its lines)], the best mean first."""
    found = {}
    for line in lines:
        found.setdefault(line["label"], []).append(line)
    return sorted(found.items(), key=lambda item: mean_bits(item[1]))


def table(lines):
    groups = by_label(lines)
    base = default_bits(groups)
    rows = ["| label | bits/char | worst | vs default | seeds | seconds | tokens/s | steps | parameters | keys | commit |",
            "|---|---:|---:|---:|---|---:|---:|---:|---:|---|---|"]
    for label, group in groups:
        bits = [final_bits(line) for line in group]
        first, mean = group[0], mean_bits(group)
        keys = " ".join(f"{k}={v}" for k, v in _own_keys(first).items())
        rows.append(f"| {label} | {mean:.3f} | {max(bits):.3f} | {'' if base is None else f'{mean - base:+.3f}'} | "
                    f"{','.join(str(line['seed']) for line in group)} | {first['train_seconds']:.0f} {first['clock']} × {first['threads']} | "
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
    groups = by_label(lines)
    base = default_bits(groups)
    rows = ["| " + " | ".join(header) + " |", "|---|---:|---:|---:|---:|"]
    for label, group in groups:
        bits = mean_bits(group)
        rows.append(f"| `{label}` | {bits:.3f} | {bits - base:+.3f} | {statistics.fmean(line['tokens_per_s'] for line in group):,.0f} | {len(group)} |")
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

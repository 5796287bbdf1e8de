"""out/report.json of one run -> the scores in README.md, README_en.md and docs/results.md, between their marks.

    python bench/scores_page.py out/report.json

docs/results.md also gets every task and the conversations of that run.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from tools.demo_data import TASKS

MARKS = ("<!-- scores: python bench/scores_page.py out/report.json -->", "<!-- /scores -->")
PAGES = ("README.md", "README_en.md", "docs/results.md")
CHINESE = {"head": ("分数", "SFT 前", "SFT 后"), "overall": "留出的内容（{n:,} 题）", "phrasings": "没见过的问法",
           "outside": "小世界以外的话，答得合适",
           "run": "一次运行（提交 {commit}，{date}）：{threads} 个线程，torch {torch}，"
                  "预训练 {pre:,} 步、SFT {sft:,} 步，训练共 {minutes:.0f} 分钟。"}
ENGLISH = {"head": ("score", "before SFT", "after SFT"), "overall": "held-out contents ({n:,} questions)",
           "phrasings": "unseen phrasings",
           "outside": "outside this world, answered sensibly",
           "run": "One run (commit {commit}, {date}): {threads} threads, torch {torch}, {pre:,} steps of "
                  "pre-training, {sft:,} of SFT, {minutes:.0f} minutes of training."}


def share(scores, name):
    """A score as text. scores: {"overall", "phrasings": {"overall"}, "outside": number or {"overall"}}, or None."""
    value = (scores or {}).get(name)
    value = value.get("overall") if isinstance(value, dict) else value
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def summary(report, words, commit, date):
    """The short table and the line about the run."""
    before, after = (report["scores"].get(stage) for stage in ("pre", "sft"))
    rows = [f"| {words[name].format(n=after['n'])} | {share(before, name)} | {share(after, name)} |"
            for name in ("overall", "phrasings", "outside") if share(after, name) != "–"]
    about = words["run"].format(commit=commit, date=date, **report["steps"],
                                **{k: report["machine"][k] for k in ("threads", "torch")},
                                minutes=sum(report["seconds"].get(stage, 0) for stage in ("pre", "sft")) / 60)
    return "\n".join([f"| {' | '.join(words['head'])} |", "|---|---:|---:|", *rows, "", about])


def details(report):
    """Every task, the worst first, and the conversations."""
    before, after = (report["scores"].get(stage) or {} for stage in ("pre", "sft"))
    phrased = (after.get("phrasings") or {}).get("by_task", {})
    rows = ["| 任务 | SFT 前 | SFT 后 | 没见过的问法 | 随机猜测 |", "|---|---:|---:|---:|---:|"]
    for task, value in sorted(after["by_task"].items(), key=lambda item: item[1]):
        cells = (before.get("by_task", {}).get(task), value, phrased.get(task), after["chance"].get(task))
        title = TASKS[task].title if task in TASKS else task
        rows.append(f"| {title} | {' | '.join(share({'x': cell}, 'x') for cell in cells)} |")
    said = "\n\n".join("\n".join(f"  你：{asked}\n小寻：{reply}" for asked, reply in pairs) for pairs in report["samples"])
    return "\n".join(rows) + f"\n\n同一次运行的对话：\n\n```\n{said}\n```"


def filled(text, block):
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + "\n" + block + "\n" + MARKS[1] + rest.split(MARKS[1])[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description="把一次 run.py 的得分写进 README 和 docs/results.md。")
    parser.add_argument("report", nargs="?", type=Path, default=ROOT / "out/report.json", help="run.py 写的 report.json")
    parser.add_argument("--commit", help="那次运行的提交，默认现在的")
    options = parser.parse_args(argv)
    report = json.loads(options.report.read_text(encoding="utf-8"))
    commit = options.commit or subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"],
                                              capture_output=True, text=True,
                                              check=True).stdout.strip()
    date = time.strftime("%Y-%m-%d", time.localtime(options.report.stat().st_mtime))
    for name in PAGES:
        block = summary(report, ENGLISH if name == "README_en.md" else CHINESE, commit, date)
        block += "\n\n" + details(report) if name == "docs/results.md" else ""
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8"), block), encoding="utf-8")
    print(json.dumps({"pages": PAGES, "commit": commit}))


if __name__ == "__main__":
    main()

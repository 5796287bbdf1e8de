"""训练报告：把一次训练的曲线、专家负载、样例、分数、配置、数据体检和机器写进一个可离线打开的 HTML 文件；也能比较两次训练。"""
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: a missing package ends in one line

from tools.check_data import brief, quick_check
from tools.cli import guarded, parse
from tools.config.keys import KEYS
from tools.errors import UserError
from tools.formats import fields_of
from tools.html_report.gather import differences, subject
from tools.html_report.page import page

OPTIONS = [
    ("runs", {"nargs": "*", "metavar": "训练", "help": "logs/ 里的 .jsonl、log.txt、训练的名字或输出文件夹；不写则为各阶段最近的一次"}),
    ("--compare", {"nargs": 2, "metavar": ("A", "B"), "help": "比较两次训练：曲线叠在一起，列出配置、数据、代码、分数的不同"}),
    ("--output", {"metavar": "文件", "help": "写到哪个 HTML 文件，默认 out/report.html"}),
]


def build(subjects, check=True):
    """[subject] or [A, B] -> the page's data. check: look at the training data again where the log holds no check-up."""
    for one in subjects:
        for run in one["runs"]:
            run["data_check"] = run["data_check"] or (_checked(run["config"]) if check else None)
    return {"subjects": subjects, "made": time.strftime("%Y-%m-%d %H:%M"), "help": {name: key.help for name, key in KEYS.items()},
            "groups": {name: key.group for name, key in KEYS.items()}, "defaults": {name: key.default for name, key in KEYS.items()},
            "differences": differences(*subjects) if len(subjects) == 2 else []}


def _checked(config):
    """A short check-up of the run's data if it is still there."""
    paths = config.get("json_data_path")
    if not paths or not all(isinstance(p, str) for p in ([paths] if isinstance(paths, str) else paths)):
        return None
    try:
        result = quick_check(paths, text_field=fields_of(config), say=None)
    except (UserError, OSError):
        return None
    return {**brief(result), "late": True}


def write_report(path, subjects, title="TinySeek 训练报告"):
    """Write the page; -> its path. An existing page is replaced whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page(build(subjects), title), encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def main(argv=None):
    manager, options = parse(argv, __doc__, extra=OPTIONS)
    config = manager.config
    if options.compare and options.runs:
        raise UserError("--compare 已经写明了两次训练，前面不要再写别的。")
    if options.compare:
        subjects, name = [subject(spec, config) for spec in options.compare], "compare"
        if subjects[0]["name"] == subjects[1]["name"]:
            for one, spec in zip(subjects, options.compare):
                one["name"] = str(spec)
    else:
        chosen = [subject(spec, config) for spec in options.runs or [None]]
        subjects = [{**chosen[0], "runs": [run for one in chosen for run in one["runs"]]}]
        name = "report" if len(options.runs) != 1 or Path(options.runs[0]).is_dir() else f"report_{chosen[0]['runs'][-1]['id']}"
    path = write_report(options.output or Path(config["out_dir"], f"{name}.html"), subjects)
    for group, what, a, b in differences(*subjects) if options.compare else ():
        print(f"{group}  {what}：{_shown(a)} → {_shown(b)}")
    print(f"报告：{path}（{path.stat().st_size / 1000:.0f} KB，用浏览器打开，不需要联网）")


def _shown(value):
    return "无" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    guarded(main)

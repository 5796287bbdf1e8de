"""训练报告：把训练的曲线、专家负载、样例、分数、配置、数据体检和机器写进一个可离线打开的 HTML 文件；也能比较几次训练。"""
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: a missing package ends in one line

from tools.check_data import brief, quick_check
from tools.cli import guarded, parse
from tools.config.compare import comparable
from tools.config.keys import KEYS, STAGE_TITLES, STAGES
from tools.config_manager import ConfigManager
from tools.errors import UserError
from tools.formats import fields_of
from tools.html_report.page import page
from tools.html_report.subjects import CHOSEN, differences, subject, task_title
from tools.logs.reader import HELD_OUT
from tools.saving.atomic import write_bytes

OPTIONS = [
    ("runs", {"nargs": "*", "metavar": "训练",
              "help": "logs/ 里的 .jsonl、log.txt、训练的名字（--name）或输出文件夹；不写则为各阶段最近的一次"}),
    ("--compare", {"nargs": "+", "metavar": "训练", "help": "比较两次以上的训练：曲线叠在一起，列出配置、数据、代码、分数的不同"}),
    ("--output", {"metavar": "文件", "help": "写到哪个 HTML 文件，默认 out/report.html"}),
]
MOST = 6            # runs that can be told apart in one picture


def build(subjects, check=True):
    """[subject] or [A, B, …] -> the page's data. check: look at the training data again where the log holds no
    check-up."""
    for one in subjects:
        for run in one["runs"]:
            run["data_check"] = run["data_check"] or (_checked(run["config"]) if check else None)
            run["preset"], run["changed"] = changed_keys(run)
    scores = [score for one in subjects for score in ((one["report"] or {}).get("scores") or {}).values()]
    tasks = {task for score in scores if isinstance(score, dict)
             for part in (score, score.get("tools") or {}) for task in part.get("by_task") or {}}
    return {"subjects": subjects, "made": time.strftime("%Y-%m-%d %H:%M"),
            "help": {name: key.help for name, key in KEYS.items()},
            "groups": {name: key.group for name, key in KEYS.items()}, "stages": STAGE_TITLES, "sets": HELD_OUT,
            "tasks": {name: task_title(name) for name in tasks},
            "differences": differences(*subjects) if len(subjects) > 1 else []}


def changed_keys(run):
    """-> (preset, keys of the run's configuration that differ from it): the preset that comes nearest, None for the
    plain defaults.

    Folders differ everywhere, and what null or auto became was the machine's choice; neither counts.
    """
    if run["stage"] not in STAGES or not run["config"]:
        return None, []
    presets = ConfigManager(stage=run["stage"]).config["presets"]
    found = {name: _differing(run["config"], ConfigManager(preset=name, stage=run["stage"]).stage())
             for name in (None, *presets)}
    return min(found.items(), key=lambda item: len(item[1]))


def _differing(config, usual):
    shown = [name for name in config
             if name in usual and name in KEYS
             and (KEYS[name].kind not in ("path", "paths") or name == "json_data_path")]
    own = [name for name in shown if comparable(KEYS[name], config[name]) != comparable(KEYS[name], usual[name])]
    by_clock = config["max_epochs"] == UNTIL_TIME
    return [name for name in own if name not in CHOSEN or usual[name] not in (None, "auto") and not by_clock]


UNTIL_TIME = 1000           # epochs of a run that ends by the clock, as run.py's do


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
    """Write the page of [subject] or of several to compare; -> its path. An existing page is replaced whole. UserError
    2 or 7."""
    write_bytes(path, page(build(subjects), title).encode("utf-8", "replace"))
    return Path(path)


def report_of(options):
    """The report of the newest runs with these options (out_dir, name, log_dir, log_file) -> path of report.html in the
    folder of their checkpoints, or None where nothing was logged: for the end of a pipeline."""
    try:
        return write_report(Path(options["out_dir"], options["name"] or "", "report.html"), [subject(None, options)])
    except UserError as error:
        print(f"没有写成报告：{error}", file=sys.stderr)
        return None


def main(argv=None):
    manager, options = parse(argv, __doc__, extra=OPTIONS, reads=("out_dir", "log_dir", "log_file", "name"))
    config = manager.config
    if options.compare:
        subjects, name = _compared(options.runs + options.compare, config), "compare"
    else:
        chosen = [subject(spec, config) for spec in options.runs or [None]]
        subjects = [{**chosen[0], "runs": [run for one in chosen for run in one["runs"]]}]
        single = len(options.runs) == 1 and not Path(options.runs[0]).is_dir()
        name = f"report_{chosen[0]['name']}" if single else "report"
    for one in subjects:
        if one["left_out"]:
            print(f"{one['name']}：report.json 里{'、'.join(STAGE_TITLES[s] for s in one['left_out'])}的分数属于另一次训练，没有放进来。")
    own = "" if options.runs or options.compare else config["name"] or ""         # as at the end of run.py
    path = write_report(options.output or Path(config["out_dir"], own, f"{name}.html"), subjects)
    for group, what, *values in differences(*subjects) if options.compare else ():
        print(f"{group}  {what}：{' → '.join(map(_shown, values))}")
    print(f"报告：{path}（{path.stat().st_size / 1000:.0f} KB，用浏览器打开，不需要联网）")


def _compared(specs, config):
    if not 2 <= len(specs) <= MOST:
        raise UserError(f"--compare 要写明 2 到 {MOST} 次训练，这里是 {len(specs)} 次。")
    subjects = [subject(spec, config) for spec in specs]
    names = [one["name"] for one in subjects]
    for one, spec in zip(subjects, specs):
        if names.count(one["name"]) > 1:
            one["name"] = str(spec)
    return subjects


def _shown(value):
    return "无" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    guarded(main)

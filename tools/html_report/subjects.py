"""Whose runs a report is about: what a user named -> its logs, and the scores of out/report.json that are theirs; what
differs."""
import json
from pathlib import Path

from tools.config.compare import compare, fingerprint
from tools.config.keys import KEYS, STAGE_TITLES, STAGES
from tools.config.values import nearest
from tools.errors import UserError
from tools.html_report.gather import run_data
from tools.logs.reader import read_log
from tools.saving.atomic import finite

NOISY = ("ppx_1", "ppx_2", "tok_s", "grad_norm", "lr")     # of the last line: nothing to judge a run by
GROUPS = ("配置", "数据", "代码", "结果", "分数")
PER_STAGE = ("scores", "steps", "tokens_seen", "losses", "bits_per_char", "seconds")
CHOSEN = ("max_steps", "max_epochs", "mixed_precision", "compile")      # run.py and the machine set these themselves


def subject(spec, config):
    """What a user named -> {"name", "runs": [run_data], "report": dict or None, "left_out": [stage]}. UserError 2.

    spec: a .jsonl, a log.txt, the name of a run (`--name`, or of its .jsonl), an out folder, or None for the newest run
    of every stage. config: where logs and checkpoints usually lie.
    """
    logs, path = Path(config["log_dir"]), Path(spec) if spec else None
    if path is None:
        name = config["name"] or Path(config["out_dir"]).name
        found = _newest(logs, _named(config["name"])) or (_of_text(config["log_file"]) if not config["name"] else [])
    elif path.is_file():
        found, name = [(path, run) for run in read_log(path)], path.stem
        found = found if path.suffix == ".jsonl" else found[-1:]
    elif path.is_dir():
        found, name = _of_folder(path.resolve(), logs), path.resolve().name
    else:
        file, name = logs / f"{spec}.jsonl", str(spec)
        found = [(file, run) for run in read_log(file)] if file.is_file() else _newest(logs, _named(str(spec)))
        if not found:
            raise UserError(_no_such(spec, logs))
    runs = [run_data(path, run) for path, run in found if len(run) or run.events]
    if not runs:
        raise UserError(f"{spec or logs} 里还没有训练日志。训练开始后再来，或写明日志、训练的名字、输出文件夹。")
    report, left_out = fitting(_report_of(path, runs, config), runs)
    return {"name": name, "runs": runs, "report": report, "left_out": left_out}


def _no_such(spec, logs):
    names = {str(head.get("config.name")) for path in logs.glob("*_2*.jsonl")
             if (head := header(path)).get("config.name")}
    close = nearest(str(spec), [*names, *(path.stem for path in logs.glob("*_2*.jsonl"))])
    hint = f"是不是想写 {close}？" if close else f"有名字的训练：{'、'.join(sorted(names))}。" if names else ""
    return f"找不到训练 {spec}。可写 logs/ 里的 .jsonl、log.txt、训练的名字（--name）或输出文件夹。{hint}"


def _of_text(path):
    return [(Path(path), run) for run in read_log(path)] if Path(path).is_file() else []


def _of_folder(folder, logs):
    """The runs whose checkpoints lie in a folder: their logs are in it, beside it, or where the configuration says."""
    def here(head):
        out, name = head.get("config.out_dir"), head.get("config.name")
        return out is not None and Path(str(out).replace("\\", "/"), str(name or "")).name == folder.name
    return (_newest(folder / "logs", _named(None)) or _newest(folder, lambda head: True)
            or _newest(folder.parent / "logs", here)
            or _newest(folder.parent.parent / "logs", here) or _newest(logs, here) or _of_text(folder / "log.txt"))


def _named(name):
    return lambda head: (head.get("config.name") or None) == (name or None)


def header(path):
    """The first line of a .jsonl: the run's header, flat; {} where there is none."""
    try:
        with open(path, encoding="utf-8") as lines:
            head = json.loads(lines.readline())
    except (OSError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}


def _newest(folder, wanted):
    """The newest run of each stage in a folder of logs whose header is `wanted`, in the order of the stages."""
    found = []
    for stage in STAGES:
        files = sorted(folder.glob(f"{stage}_2*.jsonl"), key=lambda p: (p.stat().st_mtime, p.name))
        for path in reversed(files):
            runs = read_log(path) if wanted(header(path)) else []
            if runs:
                found.append((path, runs[-1]))
                break
    return found


# ---------------------------------------------------------------- out/report.json

def _report_of(path, runs, config):
    """The report.json beside the runs' checkpoints, its time under "written"."""
    if path is not None and path.is_dir():
        return read_report(path / "report.json")
    own = runs[-1]["config"]
    return read_report(Path(str(own.get("out_dir") or config["out_dir"]), str(own.get("name") or ""), "report.json"))


def read_report(path):
    """A report.json, what is not finite in it as None and the time of the file under "written"; None where there is
    none to read."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        return {**finite(report), "written": Path(path).stat().st_mtime} if isinstance(report, dict) else None
    except (OSError, ValueError):
        return None


def fitting(report, runs):
    """-> (the report with the stages that these runs are about, or None; the stages left out because another run was
    scored)."""
    if report is None:
        return None, []
    known = {run["stage"]: run for run in runs}
    stages = [s for s in STAGES if any(s in (report.get(part) or {}) for part in ("config", *PER_STAGE))]
    wrong = [s for s in stages if s in known and not _is_of(report, s, known[s])]
    strange = not set(stages) & set(known) and bool(report.get("config"))      # not one of its stages is shown
    out = stages if strange else [s for s in stages if s in wrong or wrong and s not in known]
    kept = {part: {name: one for name, one in value.items() if not any(name == s or name == f"score_{s}" for s in out)}
            if part in PER_STAGE and isinstance(value, dict) else value for part, value in report.items()}
    if out and (strange or out[-1] == stages[-1]):
        kept.pop("samples", None)                           # the last stage spoke them
    return (None if stages and len(out) == len(stages)
            else {**kept, "samples": conversations(kept.get("samples"))}), out


def _is_of(report, stage, run):
    """Whether the figures of a stage in report.json were taken of this run: same configuration, same steps, and taken
    after it."""
    steps, told = (report.get("steps") or {}).get(stage), (report.get("config") or {}).get(stage)
    if steps is not None and steps != run["steps"]:
        return False
    if run["ended"] is not None and report["written"] < run["ended"] - 2:
        return False
    if not isinstance(told, dict) or not run["config"]:
        return True
    changes = compare(fingerprint(told), fingerprint({**told, **run["config"]}))
    return all(change.key in CHOSEN for change in changes)


def conversations(samples):
    """The talks at the end of a run as lists of [question, reply]; older reports hold a single one."""
    samples = samples if isinstance(samples, list) else []
    if samples and all(isinstance(one, list) and len(one) == 2 and all(isinstance(t, str) for t in one)
                       for one in samples):
        samples = [samples]
    return [[pair for pair in talk if isinstance(pair, list) and len(pair) == 2] for talk in samples
            if isinstance(talk, list)]


# ---------------------------------------------------------------- what differs

def differences(*subjects):
    """Two or more subjects -> list of [group, what, value in the first, in the second …] of everything that is not the
    same."""
    rows, known = [], [{run["stage"]: run for run in one["runs"]} for one in subjects]
    shared = [stage for stage in STAGES if all(stage in runs for runs in known)]
    groups = [[runs[stage] for runs in known] for stage in shared] or [[one["runs"][-1] for one in subjects]]
    for runs in groups:
        where = f"{runs[0]['title']} " if len(groups) > 1 else ""
        if len({run["stage"] for run in runs}) > 1:
            rows.append(["配置", "阶段", *(run["title"] for run in runs)])
        configs = [run["config"] for run in runs]
        rows += [["配置", where + name, *values] for name, *values in _changed(configs, list(KEYS))]
        rows += [["数据", where + name, *values] for name, *values in _changed(list(map(data_of, runs)))]
        last = _changed([run["last"] for run in runs])
        rows += [["结果", where + name, *values] for name, *values in last if name not in NOISY]
        rows += [["代码", where + name, *values] for name, *values in _changed(list(map(code_of, runs)))]
    scores = [flat_scores(one["report"]) for one in subjects]
    rows += [["分数", *row] for row in _changed(scores) if sum(row[0] in part for part in scores) > 1]
    # Stable: within a group by stage, then as they come
    return sorted(rows, key=lambda row: GROUPS.index(row[0]))


def _changed(parts, order=()):
    """[(name, value in each part)] where they differ; folders, which differ in every run, come last."""
    order = sorted(order, key=lambda k: KEYS[k].kind in ("path", "paths") and k != "json_data_path")
    every = dict.fromkeys(name for part in parts for name in part)
    names = [name for name in order if name in every] + [name for name in every if name not in order]
    rows = [(name, *(part.get(name) for part in parts)) for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def data_of(run):
    """{data file or vocabulary or base: digest} as far as the log tells."""
    paths, found = run["config"].get("json_data_path"), dict(run["identity"])
    names = [Path(str(p).replace("\\", "/")).name for p in (paths if isinstance(paths, list) else [paths]) if p]
    digests = str(found.pop("数据", "")).split("+")
    if digests != [""] and len(digests) == len(names):
        found = {**dict(zip(names, digests)), **found}
    elif digests != [""]:
        found = {"、".join(names) or "数据": "+".join(digests), **found}
    else:
        found = {**{name: "（没有记下内容的校验码）" for name in names}, **found}
    return found


def code_of(run):
    titles = (("code", "代码版本"), ("torch", "PyTorch"))
    return {name: run["header"].get(key) for key, name in titles if run["header"].get(key)}


def flat_scores(report):
    """{"指令微调 总分": 0.71, "指令微调 两位数加法": 0.9, "预训练 每字比特": 1.2 …}"""
    found = {}
    for stage, score in ((report or {}).get("scores") or {}).items():
        if isinstance(score, dict):
            found[f"{STAGE_TITLES.get(stage, stage)} 总分"] = score.get("overall")
            if "phrasings" in score:
                found[f"{STAGE_TITLES.get(stage, stage)} 换一种问法"] = score["phrasings"].get("overall")
            if "outside" in score:
                found[f"{STAGE_TITLES.get(stage, stage)} 题外话"] = score["outside"]
            if "tools" in score:
                found[f"{STAGE_TITLES.get(stage, stage)} 用工具"] = score["tools"].get("overall")
            found |= {f"{STAGE_TITLES.get(stage, stage)} {task_title(task)}": value
                      for task, value in (score.get("by_task") or {}).items()}
    for stage, value in ((report or {}).get("bits_per_char") or {}).items():
        found[f"{STAGE_TITLES.get(stage, stage)} 每字比特"] = value
    return found


def task_title(name):
    """The Chinese title of a built-in task; another name as it is."""
    from tools.demo.tasks import TASKS
    from tools.demo.tool_tasks import TITLES
    return TASKS[name].title if name in TASKS else TITLES.get(name, name)

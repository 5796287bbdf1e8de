"""What a report shows, gathered from logs and out/report.json as plain values, thinned so that a page opens at once."""
import json
import math
from pathlib import Path

import numpy as np

from tools.config.keys import KEYS, STAGE_TITLES, STAGES
from tools.errors import UserError
from tools.logs.reader import read_log

CURVES = ("loss", "ce_1", "ce_2", "ppx_1", "ppx_2", "lr", "grad_norm", "lexp", "entropy", "tok_s")
POINTS = 600                # of one curve
COLUMNS = 160               # of the heat map
EVENTS, SAMPLES = 200, 60   # kept of the newest
NOISY = ("ppx_1", "ppx_2", "tok_s", "grad_norm", "lr")     # of the last line: nothing to judge a run by
GROUPS = ("配置", "数据", "代码", "结果", "分数")
PAUSE = 20                  # a gap this many times the usual one was no work: the run stood still


def run_data(path, run):
    """One run of tools.logs.reader -> dict of plain values."""
    head, config = dict(run.header), {}
    groups = {"config": config, "identity": {}, "machine": {}}
    for key in [k for k in head if k.partition(".")[0] in groups]:
        group, _, name = key.partition(".")
        groups[group][name] = head.pop(key)
    if not config:
        config.update(_text_config(path, head))
    stage = str(head.get("stage", ""))
    return {"id": str(head.get("run", Path(path).stem)), "stage": stage, "title": STAGE_TITLES.get(stage, stage or "训练"), "file": str(path),
            "header": {k: v for k, v in head.items() if k not in ("event", "time", "step")}, "config": config, "identity": groups["identity"],
            "machine": groups["machine"], "steps": int(run.step[-1]) if len(run) else 0, "seconds": seconds_of(run),
            "curves": {name: curve for name in CURVES if (curve := thinned(run.step, run.get(name)))},
            "evals": {name: {"x": _plain(x), "y": _plain(y)} for name, (x, y) in run.evaluations().items()},
            "heat": heat_map(run.step, run.fields.get("expert_load")), "last": last_values(run), **_events(run)}


def _text_config(path, head):
    """log.txt keeps the configuration in a line `# config {...}` below a run's header; read_log passes it over."""
    if Path(path).suffix == ".jsonl":
        return {}
    mine, found = False, {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("# TinySeek"):
                mine = f"run: {head.get('run')}" in line
            elif mine and line.startswith("# config {"):
                try:
                    found = json.loads(line.removeprefix("# config "))
                except ValueError:
                    continue
    return found


def thinned(x, y):
    """At most POINTS points: {"x", "y"} and, where buckets were made, their extremes {"low", "high"}; None without a number."""
    y = np.asarray(y, dtype=float) if len(y) and not isinstance(y, list) else np.zeros(0)
    if not np.isfinite(y).any():
        return None
    if len(y) <= POINTS:
        return {"x": _plain(x), "y": _plain(y)}
    parts = np.array_split(np.arange(len(y)), POINTS)
    columns = {"x": [x[p].mean() for p in parts], "y": [_mean(y[p]) for p in parts],
               "low": [_extreme(np.min, y[p]) for p in parts], "high": [_extreme(np.max, y[p]) for p in parts]}
    return {name: _plain(values) for name, values in columns.items()}


def _mean(values):
    return _extreme(np.mean, values)


def _extreme(function, values):
    values = values[np.isfinite(values)]
    return function(values) if len(values) else math.nan


def _plain(values):
    """Numbers with six digits, None for what is not finite: the page's JSON knows no NaN."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def heat_map(steps, loads):
    """loads: per line (L, E) shares or None -> {"steps", "values": [layer][expert][column] relative to an even share} or None."""
    kept = [(s, np.asarray(load, dtype=float)) for s, load in zip(steps, loads or ()) if isinstance(load, list)]
    kept = [(s, load) for s, load in kept if load.ndim == 2 and load.shape == kept[-1][1].shape]
    if not kept:
        return None
    parts = np.array_split(np.arange(len(kept)), min(COLUMNS, len(kept)))
    stack = np.stack([np.mean([kept[i][1] for i in part], axis=0) for part in parts], -1)      # (L, E, columns)
    return {"steps": _plain([np.mean([kept[i][0] for i in part]) for part in parts]),
            "values": [[_plain(row) for row in layer * stack.shape[1]] for layer in stack]}


def last_values(run):
    """The last finite value of each curve, and the best held-out loss of each set."""
    last = {}
    for name in CURVES:
        column = run.get(name)
        finite = column[np.isfinite(column)] if isinstance(column, np.ndarray) else []
        if len(finite):
            last[name] = float(f"{finite[-1]:.6g}")
    for name, (_, losses) in run.evaluations().items():
        if np.isfinite(losses).any():
            last[f"留出损失 {name}（最低）"] = float(f"{np.nanmin(losses):.6g}")
    return last


def seconds_of(run):
    """Seconds of work: the gaps between lines, a standstill counted as one usual gap. None where no time was written."""
    times = run.get("time")
    if isinstance(times, list) or np.isfinite(times).sum() < 2:
        last = run.get("batch_t")
        return float(last[-1] * run.step[-1]) if isinstance(last, np.ndarray) and len(last) and np.isfinite(last[-1]) else None
    gaps = np.diff(times[np.isfinite(times)])
    usual = float(np.median(gaps))
    return float(np.where((gaps < 0) | (gaps > PAUSE * max(usual, 1e-3)), usual, gaps).sum())


def _events(run):
    """Samples, the data check and the preflight have places of their own; the rest is the run's diary."""
    rest, samples, single = [], [], {"data_check": None, "preflight": None}
    for event in run.events:
        kind = event.get("event")
        fields = {k: v for k, v in event.items() if k not in ("event", "time")}
        if kind in ("sample", "samples"):
            samples.append({"step": fields.get("step"), "prompt": str(fields.get("prompt", "")), "reply": str(fields.get("reply", fields.get("text", "")))})
        elif kind in single:
            single[kind] = fields
        else:
            rest.append({"kind": kind, **{k: v if isinstance(v, (int, float, str)) else json.dumps(v, ensure_ascii=False) for k, v in fields.items()}})
    counts = {}
    for event in rest:
        counts[event["kind"]] = counts.get(event["kind"], 0) + 1
    return {"events": rest[-EVENTS:], "event_counts": counts, "samples": samples[-SAMPLES:], **single}


# ---------------------------------------------------------------- whose runs

def subject(spec, config):
    """What a user named -> {"name", "runs": [run_data], "report": dict or None}. spec: a .jsonl, a log.txt, the name of a run, an
    out folder, or None for the newest run of every stage. config: where logs and checkpoints usually lie. UserError 2."""
    if spec is None:
        report = Path(config["out_dir"], "report.json")
        found, name = _newest(Path(config["log_dir"])) or _of_text(config["log_file"]), Path(config["out_dir"]).name
    elif Path(spec).is_dir():
        folder = Path(spec)
        found = _newest(folder / "logs") or _newest(folder) or _newest(folder.parent / "logs") or _of_text(folder / "log.txt")
        report, name = folder / "report.json", folder.name
    else:
        path = Path(spec) if Path(spec).is_file() else Path(config["log_dir"], f"{spec}.jsonl")
        if not path.is_file():
            raise UserError(f"找不到训练日志 {spec}。可写 logs/ 里的 .jsonl、log.txt、训练的名字或输出文件夹。")
        found = _of_text(path)[-1:] if path.suffix != ".jsonl" else [(path, run) for run in read_log(path)]
        report, name = None, path.stem
    runs = [run_data(path, run) for path, run in found]
    if not runs:
        raise UserError(f"{spec or config['log_dir']} 里还没有训练日志。训练开始后再来。")
    if report is None:                                                  # a single run: the pipeline it was part of
        report = Path(str(runs[0]["config"].get("out_dir", config["out_dir"])), "report.json")
    return {"name": name, "runs": runs, "report": read_report(report)}


def _of_text(path):
    return [(Path(path), run) for run in read_log(path)] if Path(path).is_file() else []


def _newest(folder):
    """The newest run of each stage in a folder of logs, in the order of the stages."""
    found = []
    for stage in STAGES:
        files = sorted(folder.glob(f"{stage}_2*.jsonl"), key=lambda p: p.stat().st_mtime)
        for path in reversed(files):
            runs = read_log(path)
            if runs:
                found.append((path, runs[-1]))
                break
    return found


def read_report(path):
    """out/report.json, or None where there is none to read."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


# ---------------------------------------------------------------- what differs

def differences(a, b):
    """Two subjects -> list of [group, what, value in A, value in B] of everything that is not the same."""
    rows, known = [], {run["stage"]: run for run in b["runs"]}
    pairs = [(run, known[run["stage"]]) for run in a["runs"] if run["stage"] in known]
    if not pairs:
        pairs = [(a["runs"][-1], b["runs"][-1])]
    for one, other in pairs:
        where = f"{one['title']} " if len(pairs) > 1 else ""
        if one["stage"] != other["stage"]:
            rows.append(["配置", "阶段", one["title"], other["title"]])
        rows += [["配置", where + k, u, v] for k, u, v in _changed(one["config"], other["config"], list(KEYS))]
        rows += [["数据", where + k, u, v] for k, u, v in _changed(data_of(one), data_of(other))]
        rows += [["结果", where + k, u, v] for k, u, v in _changed(one["last"], other["last"]) if k not in NOISY]
        rows += [["代码", where + k, u, v] for k, u, v in _changed(code_of(one), code_of(other))]
    rows += [["分数", k, u, v] for k, u, v in _changed(flat_scores(a["report"]), flat_scores(b["report"]))]
    return sorted(rows, key=lambda row: GROUPS.index(row[0]))          # stable: within a group by stage, then as they come


def _changed(a, b, order=()):
    order = sorted(order, key=lambda k: KEYS[k].kind in ("path", "paths") and k != "json_data_path")     # folders differ in every run
    names = [k for k in order if k in a or k in b] + [k for k in dict.fromkeys([*a, *b]) if k not in order]
    return [(k, a.get(k), b.get(k)) for k in names if a.get(k) != b.get(k)]


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
    return {name: run["header"].get(key) for key, name in (("code", "代码版本"), ("torch", "PyTorch")) if run["header"].get(key)}


def flat_scores(report):
    """{"sft 总分": 0.71, "sft sum": 0.9, "bpc pre": 1.2 …}"""
    found = {}
    for stage, score in ((report or {}).get("scores") or {}).items():
        if isinstance(score, dict):
            found[f"{stage} 总分"] = score.get("overall")
            found.update({f"{stage} {task}": value for task, value in (score.get("by_task") or {}).items()})
    for stage, value in ((report or {}).get("bits_per_char") or {}).items():
        found[f"{stage} 每字比特"] = value
    return found

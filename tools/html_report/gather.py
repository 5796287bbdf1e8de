"""What a report shows of one run, gathered from its log as plain values, thinned so that a page opens at once."""
import json
import math
from pathlib import Path

import numpy as np

from tools.config.keys import STAGE_TITLES
from tools.logs.reader import HELD_OUT

CURVES = ("loss", "ce_1", "ce_2", "ppx_1", "ppx_2", "lr", "grad_norm", "lexp", "entropy", "tok_s",
          "reward", "success", "solved", "hopeless", "length", "called", "failed", "policy_entropy", "clip_share", "kl",
          "gap", "replies_s")
POINTS = 600                # of one curve
COLUMNS = 160               # of the heat map
EVENTS = 200                # kept of the newest
TALKS = 24                  # steps at which answers are kept, the first and the last among them
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
    return {"id": str(head.get("run", Path(path).stem)), "stage": stage,
            "title": STAGE_TITLES.get(stage, stage or "训练"), "file": str(path),
            "header": {k: v for k, v in head.items() if k not in ("event", "time", "step")}, "config": config,
            "identity": groups["identity"],
            "machine": groups["machine"], "steps": int(run.step[-1]) if len(run) else 0, "seconds": seconds_of(run),
            "ended": ended(run),
            "curves": {name: curve for name in CURVES if (curve := thinned(run.step, run.get(name)))},
            "evals": {name: {"x": _plain(x), "y": _plain(y)} for name, (x, y) in run.evaluations().items()},
            "heat": heat_map(run.step, run.fields.get("expert_load")), "last": last_values(run), **told(run)}


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
    """At most POINTS points: {"x", "y"} and, where buckets were made, their extremes {"low", "high"}; None without a
    number."""
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


def heat_map(steps, loads, columns=COLUMNS):
    """loads: per line (L, E) shares or None -> {"steps", "values": [layer][expert][column] relative to an even share}
    or None."""
    kept = [(s, np.asarray(load, dtype=float)) for s, load in zip(steps, loads or ()) if isinstance(load, list)]
    kept = [(s, load) for s, load in kept if load.ndim == 2 and load.shape == kept[-1][1].shape]
    if not kept:
        return None
    parts = np.array_split(np.arange(len(kept)), min(columns, len(kept)))
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
            last[f"{HELD_OUT.get(name, f'留出数据 {name} ')}的损失（最低）"] = float(f"{np.nanmin(losses):.6g}")
    return last


def ended(run):
    """When its last line was written, seconds since 1970, or None."""
    times = run.get("time")
    times = times[np.isfinite(times)] if isinstance(times, np.ndarray) else []
    return float(times[-1]) if len(times) else None


def seconds_of(run):
    """Seconds of work: the gaps between lines, a standstill counted as one usual gap. None where no time was
    written."""
    times = run.get("time")
    if isinstance(times, list) or np.isfinite(times).sum() < 2:
        last = run.get("batch_t")
        return float(last[-1] * run.step[-1]) if isinstance(last,
                                                            np.ndarray) and len(last) and np.isfinite(
                                                                last[-1]) else None
    gaps = np.diff(times[np.isfinite(times)])
    usual = float(np.median(gaps))
    return float(np.where((gaps < 0) | (gaps > PAUSE * max(usual, 1e-3)), usual, gaps).sum())


def told(run):
    """Samples, exams, the data check and the preflight have places of their own; the rest is the run's diary."""
    rest, samples, exams, single = [], [], [], {"data_check": None, "preflight": None}
    for event in run.events:
        kind = event.get("event")
        fields = {k: v for k, v in event.items() if k not in ("event", "time")}
        if kind in ("sample", "samples"):
            samples.append(
                {"step": fields.get("step"), "prompt": str(fields.get("prompt", "")),
                 "reply": str(fields.get("reply", fields.get("text", "")))})
        elif kind == "exam":
            exams.append(fields)
        elif kind in single:
            single[kind] = fields
        else:
            rest.append(
                {
                    "kind": kind, **{k: v if isinstance(v, (int, float, str)) else json.dumps(v, ensure_ascii=False)
                                     for k, v in fields.items()}})
    counts = {}
    for event in rest:
        counts[event["kind"]] = counts.get(event["kind"], 0) + 1
    return {"events": rest[-EVENTS:], "event_counts": counts, "samples": spread(samples), "exams": spread(exams),
            **single}


def spread(rows):
    """Those of TALKS steps, from the first to the last."""
    steps = list(dict.fromkeys(row.get("step") for row in rows))
    kept = {steps[i] for i in np.linspace(0, len(steps) - 1, min(TALKS, len(steps))).astype(int)}
    return [row for row in rows if row.get("step") in kept]

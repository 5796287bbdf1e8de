"""The plan of a pipeline as progress.json keeps it: which step comes when, about how long the rest will take, what
became of it."""

import json
from pathlib import Path

from tools.errors import UserError, explain
from tools.saving.atomic import is_running

DEAD = "没有做完就停了。再运行同一条命令就接着来。"
STOPPED = "停在这里。再运行同一条命令就接着来。"


def left_of(plan, name, known=(), pace=1.0, fixed=()):
    """About how long from the beginning of the step `name` to the end of the plan -> (this step, all after it) in
    seconds; None where nobody knows.

    plan: [(name, title, seconds it takes or None)]; known: steps that need not be done again; pace: how much longer
    than planned work has taken so far, `fixed`: steps that last as planned on any machine
    """
    place = next((i for i, step in enumerate(plan) if step[0] == name), None)
    to_come = [] if place is None else plan[place:place + 1] + [s for s in plan[place + 1:] if s[0] not in known]
    if not to_come or any(len(step) < 3 or step[2] is None for step in to_come):
        return None
    own, *rest = [step[2] * (1.0 if step[0] in fixed else pace) for step in to_come]
    return own, sum(rest)


def pace_of(plan, took):
    """took: {name of a step: the seconds that it really took}. Never below 1: a quick start promises nothing."""
    planned = {step[0]: step[2] for step in plan if len(step) > 2 and step[2] and step[0] in took}
    return max(1.0, sum(took[name] for name in planned) / sum(planned.values())) if planned else 1.0


def in_words(seconds):
    """40 -> 40 秒, 400 -> 7 分钟, 9000 -> 2.5 小时"""
    if seconds < 90:
        return f"{max(1, round(seconds))} 秒"
    return f"{round(seconds / 60)} 分钟" if seconds < 5400 else f"{seconds / 3600:.1f} 小时"


def why(error):
    """What ended a step, in words for whoever looks."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return STOPPED
    if isinstance(error, OSError):
        error = explain(error)
    return str(error) if isinstance(error, UserError) else f"出错：{type(error).__name__} {error}".splitlines()[0][:200]


def steps_of(out_dir, now):
    """What run.py has done, does and will do -> [{"title", "state": done | now | next | failed, "seconds", "left",
    "note"}], [] where it never ran here. now: seconds since 1970."""
    try:
        data = json.loads(Path(out_dir, "progress.json").read_text(encoding="utf-8"))
        return [_step(data, step, now) for step in data.get("plan") or ()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _step(data, step, now):
    name, title = step[:2]
    note, left, state = (data.get("notes") or {}).get(name), None, "next"
    if name == data.get("failed"):
        state = "failed"
    elif name == data.get("now"):
        state = "now" if is_running(data.get("pid")) else "failed"
        note = note if state == "now" else DEAD
        left = data.get("left") if state == "now" else None
    elif name in data["results"] or name in (data.get("passed") or ()):
        state = "done"
    left = left and round(max(0.0, left[0] - max(0.0, now - data["since"])) + left[1])
    return {"title": str(title)[:64], "state": state, "seconds": data["seconds"].get(name), "left": left,
            "note": note and str(note)[:500]}

"""How a model grows, beside its curves: experts' load, answers to the same questions, an exam task by task."""

from tools.demo_data import TASKS
from tools.html_report.gather import COLUMNS, heat_map, told

CELLS = 12_000          # of a heat map, at most


def growth(run):
    """A run of tools.logs.reader -> {"heat", "samples": [{"step", "said": [[prompt, reply]]}], "exams": [{"step",
    "tasks": [[title, right, asked]]}]}."""
    loads, found, talks = run.fields.get("expert_load"), told(run), {}
    for one in found["samples"]:
        talks.setdefault(one["step"], []).append([one["prompt"], one["reply"]])
    size = next((len(load) * len(load[0]) for load in reversed(loads or ()) if isinstance(load, list) and load[0]), 1)
    return {"heat": heat_map(run.step, loads, max(1, min(COLUMNS, CELLS // size))),
            "samples": [{"step": step, "said": said} for step, said in talks.items()],
            "exams": [{"step": exam.get("step"), "tasks": rows} for exam in found["exams"] if (rows := rows_of(exam))]}


def rows_of(exam):
    """An event as it was logged -> [[the task's title, right, asked]]."""
    columns = [exam.get(name) for name in ("tasks", "right", "asked")]
    if not all(isinstance(column, list) for column in columns):
        return []
    return [[TASKS[task].title if task in TASKS else str(task)[:32], right, asked]
            for task, right, asked in zip(*columns)]

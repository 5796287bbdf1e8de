"""Reading log.txt and logs/*.jsonl: by field name, never by position, and past whatever a killed run left behind.

Both spellings lead to one key: `GradNorm` in log.txt is `grad_norm` in the .jsonl and here.
"""
import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from tools.errors import UserError

HELD_OUT = {"eval": "留出数据", "held": "留出数据", "general": "通用数据"}   # what the sets that are evaluated are called
MARK = "# TinySeek"                                     # opens the header of a run
COUNTERS = {"Epoch": ("epoch", "epochs"), "Batch": ("batch", "batches"), "Index": ("index", "indexes")}    # Epoch 001/1
WORDS = {"Loss": "loss", "Ppx_1": "ppx_1", "Ppx_2": "ppx_2", "Lexp": "lexp", "Accuracy": "accuracy", "Margin": "margin",
         "Reward": "reward", "Success": "success", "Solved": "solved", "Hopeless": "hopeless", "Length": "length",
         "Called": "called", "Failed": "failed",
         "Clip": "clip_share", "KL": "kl", "Entropy": "policy_entropy", "Gap": "gap", "Replies/s": "replies_s",
         "GradNorm": "grad_norm", "LR": "lr", "Tok/s": "tok_s", "Device": "device", "Batch_t": "batch_t",
         "Remaining": "remaining",
         "Step": "step"}                                # Loss: 2.3410

class Run:
    """One run of a log. header: dict; fields: name -> float array (n,), NaN where a line lacks it (`device` and its
    like: a list of str or None); step: float array (n,), rising, the x of every curve; events: list of dict (kind under
    "event")."""

    def __init__(self, header=()):
        self.header, self.events, self.rows = dict(header), [], []
        self.fields, self.step = {}, np.zeros(0)

    def __len__(self):
        return len(self.step)

    def get(self, name):
        """The column of a field by either spelling ("GradNorm", "grad_norm"); all NaN where the run has none."""
        return self.fields.get(field_key(name), np.full(len(self), np.nan))

    def evaluations(self):
        """{name of the held-out set: (steps, losses)}, from evaluation events and from lines that carry an
        eval_loss."""
        points = {}
        for row in self.events + self.rows:
            if "eval_loss" in row and "step" in row:
                points.setdefault(str(row.get("eval_name", "eval")),
                                  []).append((_number(row["step"]), _number(row["eval_loss"])))
        return {name: tuple(np.array(sorted(pairs)).T) for name, pairs in points.items()}

    def _rewind(self, step):
        """A resume from `step`: what an uncut log holds beyond it was run again afterwards."""
        self.rows, self.events = ([r for r in rows if not _number(r.get("step")) > step]
                                  for rows in (self.rows, self.events))

    def _close(self):
        """Rows -> columns."""
        last = Counter(next(reversed(row)) for row in self.rows if row).most_common(1)
        # A half line lacks the usual last field: its own last may be cut through
        for row in self.rows:
            if row and last[0][0] not in row:
                row.popitem()
        for name in dict.fromkeys(name for row in self.rows for name in row):
            texts = [row.get(name) for row in self.rows]
            numbers = np.array([_number(text) for text in texts])
            isnumber = np.isfinite(numbers).any() or any(str(text).lower() in ("nan", "inf", "-inf") for text in texts)
            self.fields[name] = numbers if isnumber else texts
        self.step = np.zeros(len(self.rows))
        self.step = _steps(self.get("step"))
        return self


def _steps(given):
    """The x axis, rising: the logged steps. A step that was lost, or shortened by a cut (4 of 400), is taken from its
    neighbours' spacing; where no line has one, lines are counted 1, 2, 3 ..."""
    before = np.concatenate([[-np.inf], np.fmax.accumulate(given)[:-1]])
    place = np.flatnonzero(np.isfinite(given) & ~(given <= before))
    if not len(place):
        return np.arange(1.0, len(given) + 1)
    known, index = given[place], np.arange(len(given))
    stride = np.median(np.diff(known) / np.diff(place)) if len(place) > 1 else 1.0
    steps = np.interp(index, place, known)
    return steps + stride * (np.minimum(index - place[0], 0) + np.maximum(index - place[-1], 0))


def field_key(name):
    """GradNorm -> grad_norm, Tok/s -> tok_s, LR -> lr"""
    return re.sub(r"[^\w.]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower())


def _number(value):
    """A float from 3, "3.2", "NaN" or a clock "01:02:03" (in seconds); NaN from anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d)", value) if isinstance(value, str) else None
        return float(int(clock[1]) * 3600 + int(clock[2]) * 60 + int(clock[3])) if clock else math.nan


def named_fields(line):
    """`# TinySeek | stage: sft | run: x` -> {"stage": "sft", "run": "x"}"""
    return {field_key(k): v.strip() for k, colon, v in (part.partition(":") for part in line.split("|")[1:]) if colon}


_COUNTER = re.compile(r"\s*(Epoch|Batch|Index) +(\d+)/(\d+)")
_KEYS = {f" {word}": key for word, key in WORDS.items()}    # spelt as usual, the slow field_key is spared


def _training_row(line):
    """The fields of a training line by name, {} for a half line without one, None for a stranger's line."""
    row = {}
    for part in line.split("|"):
        name, colon, value = part.partition(":")
        if colon:
            row[_KEYS.get(name) or field_key(name)] = value.strip()
        elif counter := _COUNTER.match(part):
            row.update(zip(COUNTERS[counter[1]], counter.groups()[1:]))
    return row if line.startswith("Epoch ") or ("loss" in row and "|" in line) else None


def _read_text(lines):
    runs, run = {}, None
    for line in lines:
        start = max(line.rfind(MARK + " |"), -1 if line.startswith("#") else line.rfind("Epoch "))
        if start > 0 and line[start - 2:start] != "| ":
            if run is not None and line.startswith("Epoch "):
                # A half line with the next one stuck to it: its point is lost, its place is not
                run.rows.append({})
            line = line[start:]
        if line.startswith(MARK):
            head = named_fields(line)
            run = runs.setdefault(head.get("run", len(runs)), Run(head))
            if "resume" in head:
                run._rewind(_number(head.get("step")))
            continue
        if run is None:                                 # a log without headers is one run
            run = runs.setdefault(None, Run())
        if event := re.match(r"# (\w+) \|", line):
            run.events.append({"event": event[1], **named_fields(line)})
        elif (row := _training_row(line)) is not None:
            run.rows.append(row)
    return runs.values()


def _read_json(lines):
    run = Run()
    for line in lines:
        try:
            row = json.loads(line)
            kind = row.get("event", "line")
        except (ValueError, AttributeError):
            continue
        if kind in ("start", "resume"):
            run.header = run.header or row
            run._rewind(_number(row.get("step")))
        else:
            (run.rows if kind == "line" else run.events).append(row)
    return [run]


def read_log(path, budget=None):
    """Parse a log.txt or a logs/*.jsonl by field name -> list[Run] in the order of their starts. budget: bytes; of a
    longer .jsonl every k-th line is looked at, so many that they fill it, and every event: enough for a picture, in a
    tenth of the time. Strangers' lines are passed over, half lines leave a gap. UserError 2 where there is no such
    file."""
    try:
        size = os.path.getsize(path)
        if budget and size > budget and str(path).endswith(".jsonl"):
            runs = _read_json(_every(path, -(-size // budget)))
        else:
            text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
            read = _read_json if text.lstrip().startswith("{") else _read_text
            runs = read(text.split("\n")[:-1])          # what has no line end is only half written
    except OSError as error:
        raise UserError(f"找不到或读不了日志 {path}。请检查路径；训练开始后才会有 log.txt。") from error
    return [run._close() for run in runs if run.rows or run.events]


def _every(path, stride):
    """Each event, each `stride`-th other line and the last one; never the whole file in memory."""
    left = b""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number % stride == 0 or b'"event"' in line:
                yield line
                left = b""
            elif line.endswith(b"\n"):                  # what has no line end is only half written
                left = line
    yield left

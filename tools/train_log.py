"""The training log, twice: log.txt in TinySeek's words for people, logs/<stage>_<start>.jsonl for programs.

log.txt holds all runs, one after another. A line that begins with `# TinySeek` opens or continues a run, other `#`
lines are events (evaluation, save, warning ...), and a training line reads

    Epoch 001/1 | Batch 0020/0375 | Index 0001/0010 | Loss: 2.3410 | ... | Remaining: 00:12:34 | Step: 20

The words, and the reader (`read_log`, importable from here too), live in tools/logs/reader.py.
"""
import json
import math
import os
import re
import time
from pathlib import Path

from tools.errors import explain
from tools.logs.reader import COUNTERS, MARK, WORDS, Run, named_fields, read_log  # noqa: F401
from tools.saving.shared_file import append, drop_half_line, rewrite


def perplexity(ce, cap=80.0):
    """exp(ce), held at exp(cap) = 5.5e34 so that it overflows nowhere, not even in float32; NaN stays NaN."""
    return math.exp(min(float(ce), cap))


def _fixed(v):
    return f"{v:.4f}" if not math.isfinite(v) or v == 0 or 1e-3 <= abs(v) < 1e6 else f"{v:.4e}"


def _clock(seconds):
    """3754 -> 01:02:34; unknown (None, NaN, infinite) -> --:--:--"""
    if seconds is None or not math.isfinite(seconds):
        return "--:--:--"
    minutes, s = divmod(max(0, int(round(seconds))), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{s:02d}"


# ---------------------------------------------------------------- plain values and plain files

def _word(value):
    """A value as one field of a text line: no line break and no bar may come out of it."""
    if isinstance(value, float):
        return _fixed(value)
    text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    return re.sub(r"\s+", " ", text.replace("|", "/")).strip()


def _plain(value):
    """Whatever a trainer hands over (tensor, numpy number, path) as a value that JSON can hold.
    JSON knows no NaN: they become the strings NaN, Infinity and -Infinity, which float() reads back."""
    if hasattr(value, "tolist"):                        # torch tensors and numpy things alike
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _flat(fields, prefix=""):
    """{"config": {"n_head": 8}} -> {"config.n_head": 8}"""
    flat = {}
    for key, value in fields.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: _plain(value)})
    return flat


def _ours(tail):
    """Whether an unfinished line is one that a killed run left."""
    return tail[:1] in b"#{" or b"Epoch ".startswith(tail[:6])


# ---------------------------------------------------------------- the writer

COUNTER_FORMS = {"Epoch": "{:03d}/{:d}", "Batch": "{:04d}/{:04d}", "Index": "{:04d}/{:04d}"}
FORMS = {"lr": "{:.4e}".format, "tok_s": "{:.0f}".format, "device": _word, "batch_t": "{:.3f}".format,
         "remaining": _clock,
         "step": "{:d}".format}                         # the others: _fixed


class TrainLog:
    """The writer of one run. `log_file` or `log_dir` may be None: that half is then not written (other ranks: both).

    resume=False opens a new run: its header line holds `header` (device, params, ...; dicts in it, such as the resolved
    configuration, get a line of their own). resume=<run_id> goes on with that run, resume=True with the newest run of
    this stage; keep `.run_id` in the checkpoint's state, for a log can be shared. Then call `resume_from(step)` before
    the first line.
    """

    def __init__(self, log_file, log_dir, stage, header=None, resume=False):
        self.log_file, self.log_dir = (Path(p) if p else None for p in (log_file, log_dir))
        self.stage, self.header, self.step = stage, dict(header or {}), 0
        for folder in filter(None, (self.log_file and self.log_file.parent, self.log_dir)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _write_error(folder, error) from error
        self.run_id = resume if isinstance(resume, str) else self._newest_run() if resume else None
        # a resumed run writes its mark after the cut, or with the first line
        self._opened = False
        drop_half_line(self.log_file, _ours)
        if self.run_id is None:
            self._open_run()

    @property
    def json_file(self):
        return self.log_dir / f"{self.run_id}.jsonl" if self.log_dir else None

    def line(self, fields):
        """Write one training line. `fields` by JSON name, values plain numbers or 0-d tensors, `step` (int) is
        required: epoch/epochs batch/batches index/indexes loss ppx_1 ppx_2 lexp grad_norm lr tok_s device batch_t
        remaining (seconds).
        `ce_1`/`ce_2` fill in a missing ppx. Whatever else is there (ce_1, an expert load list) goes to the .jsonl
        only."""
        self._ready()
        fields = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in fields.items()}
        for head in "12":
            if f"ce_{head}" in fields:
                fields.setdefault(f"ppx_{head}", perplexity(fields[f"ce_{head}"]))
        self.step = fields["step"] = int(fields["step"])
        words = [f"{word} " + COUNTER_FORMS[word].format(fields[n], fields[of])
                 for word, (n, of) in COUNTERS.items() if {n, of} <= fields.keys()]
        words += [f"{word}: {FORMS.get(key, _fixed)(fields[key])}" for word, key in WORDS.items()
                  if fields.get(key) is not None]
        self._write(" | ".join(words), {"time": round(time.time(), 3), **fields})

    def event(self, kind, **fields):
        """Note something beside the training lines: event("eval", eval_loss=2.1, eval_name="dialogue"), "save",
        "warning", "spike", "bad_rows" ... It belongs to the last line's step unless it names its own. A "save" is also
        flushed to the disk."""
        self._ready()
        fields = {"step": self.step, **fields}
        text = " | ".join([f"# {kind}"] + [f"{key}: {_word(value)}" for key, value in _flat(fields).items()])
        self._write(text, {"event": kind, "time": round(time.time(), 3), **fields}, sync=kind == "save")

    def resume_from(self, step):
        """Cut this run back to `step` (lines and events after it go, in both files) and mark the place, so that a
        killed and resumed run leaves the log of an uninterrupted one. Other runs in log.txt are not touched."""
        drop_half_line(self.json_file, _ours)
        rewrite(self.log_file, self._text_filter(step))
        rewrite(self.json_file, lambda text: _json_stays(text, step))
        self.step = int(step)
        self._mark("resume")

    def _text_filter(self, step):
        owner = [None]                                  # the run that the lines under the last mark belong to

        def keep(text):
            if text.startswith(MARK):
                owner[0] = named_fields(text).get("run")
                return True
            found = re.search(r"\| step: (\d+)", text, re.IGNORECASE) if owner[0] == self.run_id else None
            return not found or int(found[1]) <= step
        return keep

    def _newest_run(self):
        if self.log_file and self.log_file.exists():
            with open(self.log_file, encoding="utf-8", errors="replace") as f:
                marks = [named_fields(line) for line in f if line.startswith(MARK)]
            names = [m["run"] for m in marks if m.get("stage") == self.stage and "run" in m]
        else:
            names = [p.stem for p in self.log_dir.glob(f"{self.stage}_2*.jsonl")] if self.log_dir else []
            names.sort()
        return names[-1] if names else None

    def _open_run(self):
        first = self.run_id = f"{self.stage}_{time.strftime('%Y%m%d_%H%M%S')}"
        number = 1
        while self.log_dir:                             # two runs may start within one second
            try:
                os.close(os.open(self.json_file, os.O_CREAT | os.O_EXCL, 0o644))
                break
            except FileExistsError:
                number += 1
                self.run_id = f"{first}_{number}"
        self._mark("start")

    def _mark(self, kind):
        self._opened = True
        head = {"stage": self.stage, kind: time.strftime("%Y-%m-%d %H:%M:%S"), "run": self.run_id}
        if kind == "resume":
            head["step"] = self.step
        header = {**head, **self.header, **head}         # ours first, and never overruled
        text = [MARK] + [f"{k}: {_word(v)}" for k, v in header.items() if not isinstance(v, dict)]
        lines = [" | ".join(text)]
        if kind == "start":
            lines += [f"# {k} {json.dumps(_flat(v), ensure_ascii=False)}" for k, v in self.header.items()
                      if isinstance(v, dict)]
        self._write("\n".join(lines), {"event": kind, "time": round(time.time(), 3), **header})

    def _ready(self):
        if not self._opened:
            drop_half_line(self.json_file, _ours)
            self._mark("resume")

    def _write(self, text, fields, sync=False):
        if self.log_file:
            append(self.log_file, text, sync)
        if self.json_file:
            append(self.json_file, json.dumps(_flat(fields), ensure_ascii=False, allow_nan=False), sync)


def _json_stays(text, step):
    try:
        row = json.loads(text)
        return row.get("event") in ("start", "resume") or int(row["step"]) <= step
    except (ValueError, KeyError, AttributeError, TypeError):
        return False

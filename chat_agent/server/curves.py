"""The curves of runs in progress, from logs/*.jsonl: which there are, and the points of one of them.

A run is named by its file's stem and looked up in a fresh listing of the folder; no path is ever made from what a
client says.
"""

import asyncio
import json
import os
import re
import time
from pathlib import Path

import numpy as np

from chat_agent.server.errors import ApiError, shown
from chat_agent.server.growth import growth
from tools.config.keys import STAGE_TITLES
from tools.logs.reader import read_log
from tools.plot import curve, thinned
from tools.saving.plan import steps_of

FIELDS = ("loss", "ppx_1", "ppx_2", "accuracy", "margin", "reward", "success", "solved", "hopeless",
          "length", "called", "failed", "policy_entropy", "clip_share", "kl", "lr", "grad_norm", "lexp", "tok_s")
PLACE = ("epoch", "epochs", "batch", "batches", "step", "remaining")      # where the run is
FRESH = 60.0            # seconds after its last line for which a run counts as in progress where its lock tells nothing
HEAD, TAIL = 1 << 16, 1 << 15    # bytes at a log's two ends that say what it is and how it stands
FINAL = re.compile(rb'_final(\.pkl)?"')
MOST = 100              # runs that are listed
READ = 6 << 20          # bytes of a log that are parsed: every k-th line of a longer one draws the same picture
WAIT = 200              # a log that took t seconds to read is read again after WAIT * t at the earliest: all who
                        # watch a run that goes on take no more than 0.5 % of a core from it
NEWS = 1.0              # seconds for which a listing is good for everybody, unless files came or went


class Curves:
    """folder: where the *.jsonl lie; it may not exist yet. out: where a pipeline notes how far it is."""

    def __init__(self, folder, limits, out=None):
        self.folder, self.limits, self.out = folder, limits, out
        self.kept = {}  # name -> (stamp of the file, its content as JSON, when, seconds it took)
        self.heads = {}                                 # path -> (inode, header)
        self.ends = {}                                  # path -> (stamp, whether it is complete)
        self.listed = -NEWS, None, b""                  # when, stamp of the folder, JSON
        self.lock = asyncio.Lock()                      # many open pages read a file once

    async def listing(self):
        """-> bytes of JSON: {"runs", "plan"}, at most NEWS seconds old."""
        async with self.lock:
            stamp = self._stamp()
            if time.monotonic() - self.listed[0] >= NEWS or stamp != self.listed[1]:
                self.listed = time.monotonic(), stamp, await asyncio.to_thread(self._list)
            return self.listed[2]

    async def read(self, name):
        """-> bytes of JSON: the points of one run. ApiError 404 where there is none of that name."""
        async with self.lock:
            return await asyncio.to_thread(self._read, name)

    def _stamp(self):
        try:
            return os.stat(self.folder).st_mtime_ns
        except OSError:
            return None

    def _list(self):
        return packed({"runs": [self._entry(name, *found) for name, found in self._files().items()],
                       "plan": steps_of(self.out, time.time()) if self.out else []})

    def _files(self):
        """{stem: (path, stat, header)} of the plain files that are logs of runs, newest first."""
        found = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False):
                        found.append((entry.name[:-6], entry.path, entry.stat(follow_symlinks=False)))
        except OSError:
            pass                                        # no training yet, or a file that has just gone
        found.sort(key=lambda one: -one[2].st_mtime)
        runs = ((name, (path, stat, self._header(path, stat))) for name, path, stat in found)
        return dict([(name, one) for name, one in runs if one[2] is not None][:MOST])

    def _header(self, path, stat):
        """The first line of a run's log as a dict; None for other files (bad_lines.jsonl), {} where nothing is written
        yet."""
        if self.heads.get(path, (None,))[0] != stat.st_ino or not self.heads[path][1]:
            self.heads[path] = stat.st_ino, first_line(path)
        return self.heads[path][1]

    def _entry(self, name, path, stat, header):
        state = "done" if self._complete(path, stat) else state_of(header, stat.st_mtime)
        return {"name": name, "label": label_of(name, header), "modified": round(stat.st_mtime, 3), "state": state,
                "live": state == "running"}

    def _complete(self, path, stat):
        stamp = stat.st_mtime_ns, stat.st_size
        if self.ends.get(path, (None,))[0] != stamp:
            self.ends[path] = stamp, is_complete(path, stat.st_size)
        return self.ends[path][1]

    def _read(self, name):
        files = self._files()
        self.kept = {known: kept for known, kept in self.kept.items() if known in files}
        if name not in files:
            raise ApiError(404, f"没有叫 {shown(name)} 的训练记录。", "run_not_found")
        path, stat, header = files[name]
        if stat.st_size > self.limits.log_size:
            most = self.limits.log_size >> 20
            raise ApiError(413, f"这份训练记录超过 {most} MiB，请用 python tools/plot.py 画。", "log_too_large")
        stamp, now = (stat.st_mtime_ns, stat.st_size), time.monotonic()
        entry, kept = self._entry(name, path, stat, header), self.kept.get(name)
        if kept is None or kept[0] != stamp and (not entry["live"] or now - kept[2] > WAIT * kept[3]):
            content = packed(read_points(path, self.limits.curve_points))
            self.kept[name] = kept = (stamp, content, now, time.monotonic() - now)
        return packed(entry)[:-1] + b"," + kept[1][1:]


def packed(value):
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def first_line(path):
    """-> dict, {} for an empty file, None where it is no line of a run."""
    try:
        with open(path, "rb") as file:
            line = file.readline(HEAD)
        row = json.loads(line) if line.strip() else {}
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return row if not row or row.get("event") in ("start", "resume") or "loss" in row else None


def label_of(name, header):
    """What people call a run: its stage, its --name, when it began."""
    stage = str(header.get("stage", ""))
    title, own, begun = STAGE_TITLES.get(stage, stage), header.get("config.name"), str(header.get("start", ""))
    return " · ".join(str(part)[:64] for part in (title, own, begun[5:16]) if part) if title else name


def state_of(header, written):
    """How a run stands whose last checkpoint is not there: running or stopped. written: when its log was, last."""
    held = None
    if "config.out_dir" in header:
        held = is_locked(Path(str(header["config.out_dir"]), str(header.get("config.name") or "")))
    if held is None:
        held = time.time() - written < FRESH
    return "running" if held else "stopped"


def is_complete(path, size):
    """Whether the last event is the save of the final checkpoint."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return False
    saved = max((i for i, line in enumerate(lines) if b'"save"' in line and FINAL.search(line)), default=-1)
    return saved >= 0 and not any(b'"resume"' in line or b'"loss"' in line for line in lines[saved + 1:])


def is_locked(folder):
    """Whether a training owns this output folder; None where that cannot be told. Only looks: a lock shared for an
    instant."""
    try:
        import fcntl
        handle = os.open(folder / ".lock", os.O_RDONLY)
    except ImportError:
        return None
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def read_points(path, points):
    """A log -> {"stage", "place", "fields": {name: {"x", "raw_x", "y", "raw"}}, "evaluations": {name: {"x", "y"}}},
    plain JSON values."""
    runs = read_log(path, READ)
    if not runs:
        return {"stage": None, "place": {}, "total": None, "fields": {}, "evaluations": {}, "heat": None,
                "samples": [], "exams": [], "why": None}
    run = runs[-1]
    last = run.rows[-1] if run.rows else {}
    there = [name for name in FIELDS if np.isfinite(np.asarray(run.get(name), dtype=float)).any()]
    held_out = {name[:64]: {"x": _list(x), "y": _list(y)} for name, (x, y) in run.evaluations().items()}
    return {"stage": str(run.header.get("stage", ""))[:32] or None,
            "place": {k: _plain(last[k]) for k in PLACE if k in last},
            "total": _plain(run.header.get("steps")), "why": why_of(run.events),
            "fields": {name: _field(run, name, points) for name in there}, "evaluations": held_out, **growth(run)}


def why_of(events):
    """What ended a run before its time, as it said itself; None where it said nothing or went on since."""
    kinds = [event.get("event") for event in events]
    if "failed" not in kinds or "resume" in kinds[kinds.index("failed"):]:
        return None
    return str(events[kinds.index("failed")].get("text", ""))[:500] or None


def _field(run, name, points):
    x, raw, smooth = curve(run, name)
    raw_x, raw = thinned(x, raw, points)
    x, smooth = thinned(x, smooth, points)
    return {"x": _list(x), "y": _list(smooth), "raw_x": _list(raw_x), "raw": _list(raw)}


def _list(values):
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]


def _plain(value):
    return value if isinstance(value, (int, float)) and np.isfinite(value) else None

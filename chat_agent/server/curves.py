"""The curves of runs in progress, from logs/*.jsonl: which there are, and the points of one of them.

A run is named by its file's stem and looked up in a fresh listing of the folder; no path is ever made from what a client says.
"""

import asyncio
import os
import time

import numpy as np

from chat_agent.server.errors import ApiError, shown
from tools.logs.reader import read_log
from tools.plot import curve, thinned

FIELDS = ("loss", "ppx_1", "ppx_2", "lr", "grad_norm", "lexp", "tok_s")
PLACE = ("epoch", "epochs", "batch", "batches", "step", "remaining")      # where the run is
FRESH = 60.0            # seconds after its last line for which a run counts as in progress
MOST = 100              # runs that are listed
READ = 6 << 20          # bytes of a log that are parsed: every k-th line of a longer one draws the same picture
WAIT = 8                # a log that took t seconds to read is read again after WAIT * t at the earliest


class Curves:
    """folder: where the *.jsonl lie; it may not exist yet."""

    def __init__(self, folder, limits):
        self.folder, self.limits = folder, limits
        self.kept = {}                                  # name -> (stamp of the file, its content, when, seconds it took)
        self.lock = asyncio.Lock()

    async def listing(self):
        files = await asyncio.to_thread(self._files)
        return {"runs": [self._entry(name, stat) for name, (_, stat) in files.items()]}

    async def read(self, name):
        """The points of one run. ApiError 404 where there is none of that name."""
        async with self.lock:                           # many open pages read a file once
            return await asyncio.to_thread(self._read, name)

    def _files(self):
        """{stem: (path, stat)} of the plain files, newest first."""
        found = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False):
                        found.append((entry.name[:-6], entry.path, entry.stat(follow_symlinks=False)))
        except OSError:
            pass                                        # no training yet, or a file that has just gone
        found.sort(key=lambda one: -one[2].st_mtime)
        return {name: (path, stat) for name, path, stat in found[:MOST]}

    def _entry(self, name, stat):
        return {"name": name, "modified": round(stat.st_mtime, 3), "live": time.time() - stat.st_mtime < FRESH}

    def _read(self, name):
        files = self._files()
        self.kept = {known: kept for known, kept in self.kept.items() if known in files}
        if name not in files:
            raise ApiError(404, f"没有叫 {shown(name)} 的训练记录。", "run_not_found")
        path, stat = files[name]
        if stat.st_size > self.limits.log_size:
            raise ApiError(413, f"这份训练记录超过 {self.limits.log_size >> 20} MiB，请用 python tools/plot.py 画。", "log_too_large")
        stamp, now = (stat.st_mtime_ns, stat.st_size), time.monotonic()
        kept = self.kept.get(name)
        if kept is None or kept[0] != stamp and now - kept[2] > WAIT * kept[3]:
            content = read_points(path, self.limits.curve_points)
            self.kept[name] = kept = (stamp, content, now, time.monotonic() - now)
        return {**self._entry(name, stat), **kept[1]}


def read_points(path, points):
    """A log -> {"stage", "place", "fields": {name: {"x", "raw_x", "y", "raw"}}, "evaluations": {name: {"x", "y"}}}, plain JSON values."""
    runs = read_log(path, READ)
    if not runs:
        return {"stage": None, "place": {}, "fields": {}, "evaluations": {}}
    run = runs[-1]
    last = run.rows[-1] if run.rows else {}
    fields = {name: _field(run, name, points) for name in FIELDS if np.isfinite(np.asarray(run.get(name), dtype=float)).any()}
    return {"stage": str(run.header.get("stage", ""))[:32] or None, "place": {k: _plain(last[k]) for k in PLACE if k in last},
            "fields": fields, "evaluations": {name[:64]: {"x": _list(x), "y": _list(y)} for name, (x, y) in run.evaluations().items()}}


def _field(run, name, points):
    x, raw, smooth = curve(run, name)
    raw_x, raw = thinned(x, raw, points)
    x, smooth = thinned(x, smooth, points)
    return {"x": _list(x), "y": _list(smooth), "raw_x": _list(raw_x), "raw": _list(raw)}


def _list(values):
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]


def _plain(value):
    return value if isinstance(value, (int, float)) and np.isfinite(value) else None

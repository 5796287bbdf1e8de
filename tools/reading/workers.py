"""Worker processes that know nothing of the script which asked for them, and how many of them this process may use."""

import contextlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

MOST = 16               # more of them wait for the disk; Windows takes 61 at most


def processors():
    """Cores that this process may keep busy: those it is bound to, within the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *_quotas()]))


def cores():
    """How many workers are worth their start."""
    return min(processors(), MOST)


def _quotas(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """What the control groups above this process allow, in cores; [] without a limit. Version 2 says `200000 100000` in
    cpu.max, version 1 the same in two files."""
    try:
        places = [line.split(":")[2].strip("/") for line in Path(own).read_text(encoding="utf-8").splitlines()]
    except (OSError, IndexError):
        places = []
    paths = [Path(place).parts for place in [*places, ""]]
    folders = {Path(root, kind, *parts[:depth]) for kind in ("", "cpu", "cpu,cpuacct") for parts in paths
               for depth in range(len(parts) + 1)}
    found = []
    for folder in folders:
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            try:
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                found += [max(1, int(quota) // int(period))] if int(quota) > 0 else []
            except (OSError, ValueError, ZeroDivisionError):
                continue
    return found


class Workers(ProcessPoolExecutor):
    """Processes on `count` cores, each beginning with start(*settings).

    A spawned process runs the caller's script again up to `if __name__ == "__main__":`; a first script rarely has that
    line and would train once more in every worker. What is asked of these workers lies in modules, so the script is
    kept from them.
    """

    def __init__(self, count, start, settings):
        super().__init__(count, multiprocessing.get_context("spawn"), start, settings)

    def submit(self, *job, **named):
        with _script_hidden():                 # here the processes are started, one by one, as jobs come
            return super().submit(*job, **named)


@contextlib.contextmanager
def _script_hidden():
    script = sys.modules["__main__"].__dict__
    kept = {name: script[name] for name in ("__file__", "__spec__") if name in script}
    script.pop("__file__", None)
    script["__spec__"] = None
    try:
        yield
    finally:
        script.update(kept)

"""How many processes: bound cores, a container's quota, and never more than an operating system takes."""
import os

import pytest

from tools.reading import workers
from tools.reading.workers import _quotas, cores, processors


@pytest.mark.parametrize("files, own, quota", [
    ({}, "0::/", []), ({"cpu.max": "max 100000"}, "0::/", []), ({"cpu.max": "250000 100000"}, "0::/", [2]),
    ({"cpu.max": "50000 100000"}, "0::/", [1]),
    ({"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000", "other/cpu.max": "100000 100000"}, "0::/a/b",
     [2, 3]),
    ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/docker/x", [4]),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", []), ({"cpu.max": "odd"}, "", []),
])
def test_the_quota_of_a_container(tmp_path, files, own, quota):
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert sorted(_quotas(tmp_path / "root", tmp_path / "own")) == quota
    assert _quotas(tmp_path / "no", tmp_path / "none") == []


@pytest.mark.parametrize("bound, quotas, wanted, most",
                         [(1, [], 1, 1), (8, [], 8, 8), (128, [], 128, 16), (128, [2, 64], 2, 2), (4, [9], 4, 4)])
def test_the_smallest_limit_counts(monkeypatch, bound, quotas, wanted, most):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _pid: set(range(bound)), raising=False)
    monkeypatch.setattr(workers, "_quotas", lambda: quotas)
    assert (processors(), cores()) == (wanted, most)


def test_windows_with_many_processors(monkeypatch):
    """ProcessPoolExecutor refuses more than 61 there."""
    monkeypatch.delattr(workers.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 128)
    monkeypatch.setattr(workers, "_quotas", lambda: [])
    assert processors() == 128 and cores() <= 61
    monkeypatch.setattr(workers.os, "cpu_count", lambda: None)
    assert cores() == 1


def test_nobody_else_counts_processors():
    """One place: a container's quota is seen wherever processes or threads are started."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    asking = [os.path.relpath(os.path.join(folder, name), root)
              for part in ("tools", "train_agent", "chat_agent", "model")
              for folder, _, names in os.walk(os.path.join(root, part)) for name in names
              if name.endswith(".py") and "cpu_count(" in open(os.path.join(folder, name), encoding="utf-8").read()]
    assert asking == [os.path.join("tools", "reading", "workers.py")]

"""kill -9 at every call of a save that changes files: afterwards the old checkpoint or the new one loads, never
neither."""
import os
import random
import shutil
import signal
import time

import pytest
import torch

from file_faults import best_name, die_at, final_name, in_child, put, quiet, report, same, temporary_files, toy_payload
from tools.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="需要 fork 和 SIGKILL")


def save_new(folder):
    put(folder, 3)


def save_best(folder):
    put(folder, 3, best_name("Pre"), best=True)


def save_final(folder):
    put(folder, 3, final_name("Pre"), final=True)


def save_and_prune(folder):
    put(folder, 3)
    folder.prune(1)


def prepare(path):
    with quiet(path) as folder:
        put(folder, 1, best_name("Pre"), best=True)
        put(folder, 1, final_name("Pre"), final=True)
        put(folder, 1)
        put(folder, 2)


def killed(path, act, number, torn):
    """Do `act` in a child that is killed at call `number`. Returns True when it was, False when it had finished
    before."""
    def work():
        folder = quiet(path).lock()
        die_at(number, torn)
        act(folder)
    status = in_child(work)
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("act", [save_new, save_best, save_final, save_and_prune])
@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_kill_at_every_call_of_a_save(ram_path, act, torn):
    prepare(ram_path / "start")
    number, found = 0, set()
    while True:
        number += 1
        shutil.rmtree(ram_path / "out", ignore_errors=True)
        shutil.copytree(ram_path / "start", ram_path / "out")
        died = killed(ram_path / "out", act, number, torn)
        for path in (ram_path / "out").glob("*.pkl"):  # whoever only loads a .pkl always finds a whole one
            read_checkpoint(path)
        with quiet(ram_path / "out") as folder:
            payload, state = folder.newest_good()
            assert payload["step"] in (2, 3) and same(payload, state, payload["step"])
            found.add(payload["step"])
            for entry in folder.entries():  # every pair, best and final too, is of one save
                assert same(*folder.load(entry), entry["step"])
            assert not temporary_files(folder.path)
            act(folder)  # and the run goes on as if nothing had happened
            assert same(*folder.newest_good(), 3)
        if not died:
            break
    assert number > 10 and found == {2, 3}
    report(kills=number - 1, act=act.__name__, torn=torn, neither=0)


def test_kill_at_every_call_of_the_first_save(ram_path):
    """Nothing was saved yet: after the kill there is nothing, or the whole first checkpoint."""
    number, found = 0, set()
    while True:
        number += 1
        shutil.rmtree(ram_path / "out", ignore_errors=True)
        died = killed(ram_path / "out", save_new, number, False)
        with quiet(ram_path / "out") as folder:
            loaded = folder.newest_good()
            found.add(loaded is not None)
            assert loaded is None or same(*loaded, 3)
        if not died:
            break
    assert found == {True, False}


def test_kill_at_every_call_of_a_backup_loses_nothing(ram_path):
    prepare(ram_path / "start")
    wanted = {p.name: p.read_bytes() for p in (ram_path / "start").glob("TinySeek*")}
    number = 0
    while True:
        number += 1
        shutil.rmtree(ram_path / "out", ignore_errors=True)
        shutil.copytree(ram_path / "start", ram_path / "out")
        died = killed(ram_path / "out", lambda folder: folder.backup(), number, False)
        with quiet(ram_path / "out") as folder:  # taking the lock finishes the move, or it had not begun
            folder.backup()
            assert folder.newest_good() is None
        (backup,) = [p for p in (ram_path / "out").glob("backup_*") if any(p.iterdir())]
        assert {p.name: p.read_bytes() for p in backup.glob("TinySeek*")} == wanted
        assert same(*quiet(backup).newest_good(), 2)
        if not died:
            break
    assert number > 10


def test_flush_comes_before_rename(ram_path):
    """A kill cannot show it, a power cut would: data on the disk before the name, the name before the list."""
    trace, real = [], {n: getattr(os, n) for n in ("fsync", "replace", "open")}
    opened = {}

    def opening(path, *rest, **more):
        handle = real["open"](path, *rest, **more)
        opened[handle] = os.path.basename(path)
        return handle

    with quiet(ram_path / "out") as folder:
        try:
            os.open = opening
            os.fsync = lambda handle: (trace.append(("flush", opened[handle])), real["fsync"](handle))[1]
            os.replace = lambda a, b: (trace.append(("name", os.path.basename(a), os.path.basename(b))),
                                       real["replace"](a, b))[1]
            save_new(folder)
        finally:
            for name, function in real.items():
                setattr(os, name, function)
    names = [t for t in trace if t[0] == "name"]
    assert [t[2].rpartition(".")[2] for t in names] == ["state", "pkl", "json"]
    for name in names:
        place = trace.index(name)
        assert ("flush", name[1]) in trace[:place] and trace[place + 1] == ("flush", "out")


def test_control_plain_save_loses_the_file(ram_path):
    """Control arm: plain torch.save over the same name, killed at the same kinds of call, must lose both old and
    new."""
    path, lost, number = ram_path / "a.pkl", 0, 0

    class Plain:
        def __init__(self):
            self.handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

        def write(self, data):
            return os.write(self.handle, data)

        def flush(self):
            os.fsync(self.handle)

    def work():
        die_at(number, True)
        torch.save(toy_payload(2), Plain())
    while True:
        number += 1
        torch.save(toy_payload(1), path)
        died = in_child(work) != 0
        try:
            torch.load(path, weights_only=True)
        except Exception:
            lost += 1
        if not died:
            break
    report(control_kills=number - 1, control_lost=lost)
    assert lost > 5


def random_kills(ram_path, kills):
    """Save checkpoints of 4 MB one after the other, and kill at a random moment. Returns how many kills hit a save
    half-way."""
    torn, last = 0, 0
    rng = random.Random(kills)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                folder = quiet(ram_path / "out").lock()
                loaded = folder.newest_good()
                step = loaded[0]["step"] if loaded else 0
                while True:
                    step += 1
                    put(folder, step, numbers=500_000)
                    put(folder, step, best_name("Pre"), numbers=1000, best=True)
                    folder.prune(2)
            finally:
                os._exit(99)
        time.sleep(rng.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        torn += bool((ram_path / "out").exists() and temporary_files(ram_path / "out"))
        with quiet(ram_path / "out") as folder:
            loaded = folder.newest_good()
            step = loaded[0]["step"] if loaded else 0
            assert step >= last and (not loaded or same(*loaded, step))
            for entry in folder.entries():
                assert same(*folder.load(entry), entry["step"])
            last = step
    report(random_kills=kills, found_half_way=torn, saves=last, lost=0)
    assert torn and last


def test_kill_at_random_moments(ram_path):
    random_kills(ram_path, 12)


@pytest.mark.slow
def test_kill_at_random_moments_long(ram_path):
    random_kills(ram_path, 250)

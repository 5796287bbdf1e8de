"""SIGTERM and Ctrl-C, once and twice in a row, at every kind of place: exit 143, all that was done is saved, the same
bits after."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toy
from file_faults import quiet, report
from whole_runs import LABELS, differences, finished

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="需要 fork 和 /proc")
ROOT = Path(__file__).resolve().parents[2]
LOOP, CACHE, FOLDER = "train_agent.trainers.loop", "train_agent.trainers.data.token_cache", "tools.saving.run_folder"
TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
ORDERS = ([TERM], [INT], [TERM, TERM], [INT, INT], [TERM, INT])
# place: (module, function, at which of its calls, before or after it, exit status, how many steps are saved then; None
# = no checkpoint)
PLACES = {
    "vocabulary": ("tools.words.build_vocab", "build", 1, "before", 143, None),
    "tokenising": (CACHE, "_encode_block", 1, "before", 143, None),
    "writing the cache": (CACHE, "_write", 1, "after", 143, None),
    "checking the cache": (CACHE, "content_of", 1, "after", 143, None),
    "model": ("train_agent.trainers.build_stage", "wanted_shape", 1, "after", 143, None),
    "looking for a checkpoint": (FOLDER, "RunFolder.newest_good", 1, "before", 143, 1),
    "opening the log": (LOOP, "Loop.choose", 1, "after", 143, 1),
    "first step": (LOOP, "Loop.optimize", 1, "before", 143, 1),
    "step": (LOOP, "Loop.optimize", 5, "after", 143, 5),
    "clipping": (LOOP, "Loop.clip", 7, "before", 143, 7),
    "rate": (LOOP, "set_rates", 8, "after", 143, 8),
    "log line": (LOOP, "Loop.log", 10, "before", 143, 10),
    "evaluation": (LOOP, "evaluate", 2, "before", 143, 8),
    # the first save is step 3, the second best of step 4
    "best model": (FOLDER, "RunFolder.save", 2, "before", 143, 4),
    # During the save after step 3 (or 6) one more step is taken and saved.
    "save": (FOLDER, "RunFolder.save", 1, "before", 143, 4),
    "half-way through a save": (FOLDER, "RunFolder._stage", 1, "after", 143, 4),
    "renaming": (FOLDER, "RunFolder._finish", 2, "before", 143, 4),
    "pruning": (FOLDER, "RunFolder.prune", 3, "before", 143, 7),
    "last step": (LOOP, "Loop.optimize", "last", "after", 143, "last"),
    # all is done: the run ends as one that was left alone
    "final evaluation": (LOOP, "Loop.finish", 1, "before", 0, "last"),
}


@pytest.fixture(scope="module")
def whole(zygote, world):
    """stage -> what the run that was left alone has left; each is run when it is asked for first."""
    done = {}

    def of(stage):
        if stage not in done:
            out = world.folder / f"whole_{stage}"
            assert zygote.run(stage, arguments(world, stage, out), out.with_suffix(".said")) == 0
            done[stage] = finished(out, stage)
        return done[stage]
    return of


def arguments(world, stage, out):
    """Every pre-training builds a vocabulary of its own, from its data."""
    own = {"vocab_trg_path": out / "vocab.json", "vocab_size": 420,
           "vocab_data_path": world.folder / "pre.jsonl"} if stage == "pre" else {}
    return world.argv(stage, out, **own)


def stopped_and_resumed(zygote, world, whole, out, stage, place, order):
    """One run that gets its signals at `place`, then another that must end it; every law is checked."""
    module, name, number, when, status, steps = PLACES[place]
    last = whole(stage)["state"]["step"]
    number, steps = (last if value == "last" else value for value in (number, steps))
    said = out.with_suffix(".said")
    found = zygote.run(stage, arguments(world, stage, out), said, signal_at=[module, name, number, when, *order])
    assert found == status, (place, order, stage, found, said.read_text(errors="replace")[-2000:])
    assert "Traceback" not in said.read_text(errors="replace"), place
    assert not list(out.rglob(".tmp-*")), place
    with quiet(out / "out", LABELS[stage]) as folder:
        loaded = folder.newest_good()
    assert (loaded and loaded[1]["step"]) == steps, (place, order, stage, loaded and loaded[1]["step"])
    if status:
        assert zygote.run(stage, arguments(world, stage, out), said) == 0, said.read_text(errors="replace")[-2000:]
    assert differences(whole(stage), finished(out, stage)) == [], (place, order, stage)


def stop_at(zygote, world, whole, folder, cases):
    for number, (stage, place, order) in enumerate(cases):
        stopped_and_resumed(zygote, world, whole, folder / str(number), stage, place, order)
    report(stopped=len(cases), saved_and_identical=len(cases), places=len({c[1] for c in cases}))


def every_case():
    """100: each place with each order; only pre-training builds a vocabulary."""
    stages = random.Random(3)
    return [("pre" if place == "vocabulary" else stages.choice(tuple(LABELS)), place, order) for place in PLACES
            for order in ORDERS]


def test_T_stopped_anywhere_nothing_is_lost(zygote, world, whole, ram_path):
    short = [("pre", "tokenising", [TERM]), ("pre", "step", [TERM, INT]),
             ("pre", "half-way through a save", [INT, INT]),
             ("pre", "evaluation", [INT]), ("pre", "last step", [TERM])]
    stop_at(zygote, world, whole, ram_path, short)


@pytest.mark.slow
def test_T_stopped_anywhere_nothing_is_lost_long(zygote, world, whole, ram_path):
    cases = every_case()
    assert len(cases) == 100
    stop_at(zygote, world, whole, ram_path, cases)


def test_control_without_handlers_the_steps_are_lost(zygote, world, ram_path):
    """Control arm: the signal's usual meaning. The process dies at once, and the steps since the last save are gone."""
    out = ram_path / "out"
    status = zygote.run("pre", arguments(world, "pre", out), ram_path / "said", no_handlers=0,
                        signal_at=[LOOP, "Loop.optimize", 5, "after", TERM])
    with quiet(out / "out") as folder:
        assert status == -TERM and folder.newest_good()[1]["step"] == 3


# ---- while Python still imports ----

def listens(pid):
    """Whether a process has a handler for SIGTERM by now."""
    with open(f"/proc/{pid}/status") as f:
        caught = next(int(line.split()[1], 16) for line in f if line.startswith("SigCgt"))
    return bool(caught >> TERM - 1 & 1)


def stop_while_importing(script, order, delay):
    process = subprocess.Popen([sys.executable, str(ROOT / script), "--help"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    while not listens(process.pid):
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(delay)
    for number in order:
        process.send_signal(number)
    said = process.communicate(timeout=300)
    return process.returncode, said[1].decode()


def test_T_stopped_while_importing():
    assert stop_while_importing("train_agent/pre_train.py", [TERM, TERM], 0.0) == (143, "")


@pytest.mark.slow
def test_T_stopped_while_importing_long():
    rng, scripts = random.Random(5), sorted((ROOT / "train_agent").glob("*train*.py")) + [ROOT / "run.py"]
    stops = [stop_while_importing(script, order, rng.uniform(0, 0.5)) for script in scripts for order in ORDERS[:4]]
    early = [stop for stop in stops if stop[0] == 143]
    report(stopped_while_importing=len(early), of=len(stops), tracebacks=sum("Traceback" in stop[1] for stop in stops))
    assert [stop for stop in stops if stop not in ((143, ""), (0, ""))] == [] and len(early) > len(stops) // 2


def test_a_second_run_of_the_same_process_does_not_begin(monkeypatch, ram_path, vocab):
    """run.py: a stop during the final save of one stage keeps the next one from starting."""
    from tools.process import signals
    monkeypatch.setattr(signals, "heard", False)
    signals.leave_if_heard()
    loop = toy.ToyLoop(toy.build_stage(toy.toy_options(ram_path, vocab, rows=10)))
    finish = loop.finish
    loop.finish = lambda: (os.kill(os.getpid(), TERM), finish())
    loop.run()
    with pytest.raises(SystemExit) as end:
        signals.leave_if_heard()
    assert end.value.code == 143

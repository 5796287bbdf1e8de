"""Two to eight processes want one folder: exactly one gets it, a kill frees it, and its orphans do not keep it."""
import os
import signal

import pytest

from file_faults import in_child, quiet, report, seeded
from tools.errors import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="需要 fork")


def runner(path, gate, results, end):
    """One contender: waits at the gate, tries, reports one byte, and keeps what it got until `end` closes."""
    try:
        os.read(gate, 1)
        try:
            quiet(path).lock()
            os.write(results, b"+")
        except UserError as error:
            os.write(results, b"-" if error.code == 6 else b"?")
        os.read(end, 1)
    finally:
        os._exit(0)


def race(path, contenders):
    """Returns one byte per contender: + owner, - refused with code 6."""
    gate, results, end = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(contenders):
        child = os.fork()
        if child == 0:
            for handle in (gate[1], results[0], end[1]):
                os.close(handle)
            runner(path, gate[0], results[1], end[0])
        children.append(child)
    os.close(results[1])
    os.close(gate[1])  # go
    answers = b""
    while len(answers) < contenders and (more := os.read(results[0], 10)):
        answers += more
    os.close(end[1])
    for child in children:
        os.waitpid(child, 0)
    for handle in (gate[0], results[0], end[0]):
        os.close(handle)
    return answers


def races(path, count):
    rng, total = seeded(count), 0
    for number in range(count):
        contenders = rng.randint(2, 8)
        total += contenders
        folder = path / str(number % 3)  # some folders are new, some carry the lock file of an earlier race
        assert sorted(race(folder, contenders)) == sorted(b"+" + b"-" * (contenders - 1))
    report(races=count, runs=total, owners=count)


def test_exactly_one_owner(ram_path):
    races(ram_path, 20)


@pytest.mark.slow
def test_exactly_one_owner_long(ram_path):
    races(ram_path, 200)


def test_control_a_lock_file_that_merely_exists_survives_a_kill(ram_path):
    """Control arm: the usual lock (a file that exists) blocks the restart after a kill. Ours does not."""
    def naive():
        os.open(ram_path / "naive.lock", os.O_CREAT | os.O_EXCL)
        os.kill(os.getpid(), signal.SIGKILL)

    def ours():
        quiet(ram_path / "out").lock()
        os.kill(os.getpid(), signal.SIGKILL)
    for work, second in ((naive, 99), (ours, -signal.SIGKILL)):
        assert in_child(work) == -signal.SIGKILL
        assert in_child(work) == second


def test_an_orphaned_worker_does_not_keep_the_folder(ram_path):
    """A data worker that outlives its killed run (frozen, say) must not block the restart."""
    reader, writer = os.pipe()

    def work():
        quiet(ram_path / "out").lock()
        if os.fork() == 0:  # the worker: lives until the test ends
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    assert in_child(work) == -signal.SIGKILL
    with quiet(ram_path / "out"):
        assert in_child(lambda: quiet(ram_path / "out").lock()) == 6
    os.close(writer)
    os.close(reader)


def test_the_message_names_the_owner(ram_path):
    with quiet(ram_path / "out"), pytest.raises(UserError) as caught:
        quiet(ram_path / "out", "SFT").lock()
    assert str(os.getpid()) in str(caught.value)

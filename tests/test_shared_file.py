"""A log that one run shortens while others write to it."""
import multiprocessing
import os
import stat
import sys
import tracemalloc

import pytest

from tools.errors import UserError
from tools.saving.shared_file import append, drop_half_line, rewrite

WRITERS, LINES = 3, 1500


def write_lines(path, name):
    for number in range(LINES):
        append(path, f"{name} {number}")


def rewrite_often(path, done):
    while not done.is_set():
        rewrite(path, lambda text: not text.startswith("old"))
        append(path, "old")


@pytest.mark.skipif(os.name == "nt", reason="Windows 上替换的一瞬间除外")
def test_no_line_of_another_run_is_ever_lost(tmp_path):
    path, spawn = tmp_path / "log.txt", multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    append(path, "old")
    done = spawn.Event()
    cutters = [spawn.Process(target=rewrite_often, args=(path, done)) for _ in range(2)]
    writers = [spawn.Process(target=write_lines, args=(path, name)) for name in range(WRITERS)]
    for process in cutters + writers:
        process.start()
    for process in writers:
        process.join()
    done.set()
    for process in cutters:
        process.join()
    lines = path.read_text().splitlines()
    for name in range(WRITERS):
        assert [line for line in lines if line.startswith(f"{name} ")] == [f"{name} {number}"
            for number in range(LINES)]
    assert [p.name for p in tmp_path.iterdir()] == ["log.txt"]


def test_a_half_line_is_cut_under_the_lock_and_a_strangers_is_ended(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("one\nhalf")
    drop_half_line(path, lambda tail: tail == b"half")
    assert path.read_text() == "one\n"
    path.write_text("one\nother")
    drop_half_line(path, lambda tail: False)
    assert path.read_text() == "one\nother\n"


def test_a_long_log_is_not_held_in_memory(tmp_path):
    path = tmp_path / "log.txt"
    with open(path, "w") as file:
        for number in range(200_000):
            file.write(f"line {number} {'x' * 80}\n")
    tracemalloc.start()
    rewrite(path, lambda text: not text.startswith("line 7 "))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6 and sum(1 for _ in open(path)) == 199_999


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_mode_and_link_of_the_log_stay(tmp_path):
    path, link = tmp_path / "real.txt", tmp_path / "log.txt"
    path.write_text("a\nb\n")
    path.chmod(0o640)
    link.symlink_to(path)
    rewrite(link, lambda text: text != "a\n")
    assert link.is_symlink() and path.read_text() == "b\n" and stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_what_cannot_be_written_is_told_in_clear_words(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(UserError) as error:
        append(tmp_path / "log.txt", "x")
    assert error.value.code == 2 and "log.txt" in str(error.value)

"""A full disk and a read-only folder, for real: file-size limits and small file systems, on child processes."""
import os
import shutil
import subprocess

import pytest
import torch

from file_faults import best_name, in_child, put, quiet, report, same, temporary_files, toy_payload
from tools.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="需要 fork")
NUMBERS = 20_000  # 80 kB of weights, as much again in the state


def begin(path):
    with quiet(path) as folder:
        put(folder, 1, numbers=NUMBERS)
        put(folder, 2, best_name("Pre"), numbers=NUMBERS, best=True)
    return path


def save_third(path):
    folder = quiet(path).lock()
    put(folder, 3, best_name("Pre"), numbers=NUMBERS, best=True)


def check_survived(path, status, allowed=(0, 7)):
    """After a save that may have failed: old or new, nothing half, nothing left over. Returns the step found."""
    assert status in allowed
    assert not temporary_files(path)  # removed by the very process that failed
    for pickle in path.glob("*.pkl"):
        read_checkpoint(pickle)
    with quiet(path) as folder:
        payload, state = folder.newest_good()
    assert same(payload, state, payload["step"]) and payload["step"] == (3 if status == 0 else 2)
    return payload["step"]


def test_file_size_limit(ram_path):
    import resource
    begin(ram_path / "out")
    size = (ram_path / "out" / best_name("Pre")).stat().st_size
    state_size = (ram_path / "out" / "TinySeek_Pre_best.state").stat().st_size
    sizes = sorted({*range(0, size + 2000, size // 48), size - 1, size, state_size - 1, state_size, 100, 4095, 4096})
    full = 0
    for limit in sizes:
        def work():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save_third(ram_path / "out")
        status = in_child(work)
        full += status == 7
        if check_survived(ram_path / "out", status) == 3:
            break
    report(size_limits=len(sizes), full=full, damaged=0)
    assert full >= 50 and limit >= size


def test_control_plain_save_on_a_full_disk_destroys_the_file(ram_path):
    """Control arm: plain torch.save over the only checkpoint, under the same limits."""
    import resource
    path, damaged, sizes = ram_path / "a.pkl", 0, range(0, 80_000, 8000)
    for limit in sizes:
        torch.save(toy_payload(1, numbers=NUMBERS), path)

        def work():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            torch.save(toy_payload(2, numbers=NUMBERS), path)
        assert in_child(work) != 0
        try:
            torch.load(path, weights_only=True)
        except Exception:
            damaged += 1
    report(control_sizes=len(sizes), control_damaged=damaged)
    assert damaged == len(sizes)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of its own with the given options."""
    mounted = []

    def mount(options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip("不能挂载 tmpfs（需要 Linux 的 root）")
        mounted.append(place)
        return place
    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_small_file_system(small_disk):
    disk = small_disk("size=2m")
    begin(disk / "out")
    need = sum(p.stat().st_size for p in (disk / "out").glob("*best*")) + 16384
    full, tried, filler = 0, 0, disk / "filler"
    for free in range(0, need + 8192, 4096):
        filler.unlink(missing_ok=True)
        space = os.statvfs(disk).f_bavail * 4096
        with open(filler, "wb") as file:
            file.write(bytes(space - free))
        status, tried = in_child(save_third, disk / "out"), tried + 1
        full += status == 7
        if check_survived_on(disk, status) == 3:
            break
    report(file_system_sizes=tried, full=full, damaged=0)
    assert full >= 30 and status == 0


def check_survived_on(disk, status):
    (disk / "filler").unlink()  # the user makes room, and the run goes on
    return check_survived(disk / "out", status)


def test_no_inodes(small_disk):
    disk = small_disk("size=8m,nr_inodes=30")
    begin(disk / "out")
    more = 0
    while os.statvfs(disk).f_ffree:
        (disk / f"file{more}").touch()
        more += 1
    statuses = []
    for number in range(more):
        statuses.append(in_child(save_third, disk / "out"))
        if check_survived(disk / "out", statuses[-1]) == 3:
            break
        (disk / f"file{number}").unlink()
    assert statuses[0] == 7 and statuses[-1] == 0


def test_read_only_file_system(small_disk):
    disk = small_disk("size=8m")
    begin(disk / "out")
    if subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        pytest.skip("不能重新挂载")
    assert in_child(save_third, disk / "out") == 2
    assert in_child(lambda: quiet(disk / "new").lock()) == 2
    assert subprocess.run(["mount", "-o", "remount,rw", str(disk)]).returncode == 0
    check_survived(disk / "out", 2, (2,))


def test_folder_becomes_read_only(ram_path):
    """The files are open to all, the folder is not. (Root may write anywhere, so the child becomes nobody.)"""
    out = begin(ram_path / "out")
    for place in (ram_path, out, *out.iterdir()):
        os.chmod(place, 0o777)

    def work():
        if os.getuid() == 0:
            os.setuid(65534)
        save_third(out)
    os.chmod(out, 0o555)
    status = in_child(work)
    os.chmod(out, 0o777)
    check_survived(out, status, (2,))

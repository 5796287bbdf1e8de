"""Truncation, flipped bits and blocks of zeros: all of them are found. Control arm: the share that plain torch.load
accepts."""
import os
import zipfile

import pytest
import torch

from file_faults import put, quiet, report, same, seeded, toy_payload
from tools.checkpoint import CheckpointError, read_checkpoint, read_torch, write_torch
from tools.saving.archive import read_json

NUMBERS = 4000  # 16 kB of weights beside 2 kB of everything else


def targets(folder):
    """{kind: (path, loader)} of one checkpoint's three files."""
    put(folder, 1, numbers=NUMBERS)
    stem = folder.path / "TinySeek_Pre0_1_s1"
    return {"pkl": (stem.with_suffix(".pkl"), read_checkpoint), "state": (stem.with_suffix(".state"), read_torch),
            "manifest": (folder.manifest.path, read_json)}


def plain_copy(path):
    """Control arm: the same content in a plain torch.save file. Returns (path, loader)."""
    torch.save(toy_payload(1, numbers=NUMBERS), path)
    return path, lambda p: torch.load(p, weights_only=True)


def accepted(path, load):
    try:
        load(path)
    except CheckpointError as error:
        assert error.code == 3
        return False
    except Exception:  # only the control arm: ours answers with nothing but CheckpointError
        assert load not in (read_checkpoint, read_torch, read_json)
        return False
    return True


def flips(path, load, count):
    """How many of `count` files with one flipped bit are accepted. The file is whole again afterwards."""
    rng, size, passed = seeded(path.name), path.stat().st_size, 0
    with open(path, "r+b", buffering=0) as file:
        for where in (rng.randrange(size * 8) for _ in range(count)):
            file.seek(where // 8)
            old = file.read(1)[0]
            for byte in (old ^ 1 << where % 8, old):
                file.seek(where // 8)
                file.write(bytes([byte]))
                passed += byte != old and accepted(path, load)
    assert accepted(path, load)
    return passed


def check_flips(ram_path, count):
    with quiet(ram_path / "out") as folder:
        for kind, (path, load) in targets(folder).items():
            assert flips(path, load, count) == 0, kind
    control = flips(*plain_copy(ram_path / "plain.pkl"), count)
    report(flips=3 * count, accepted=0, control_flips=count, control_accepted=control)
    assert control > count // 2  # most of a checkpoint is weights, and plain torch.load does not check them


def test_every_flipped_bit_is_found(ram_path):
    check_flips(ram_path, 300)


@pytest.mark.slow
def test_every_flipped_bit_is_found_long(ram_path):
    check_flips(ram_path, 5000)


def test_every_single_bit_of_a_manifest_and_of_a_file_end(ram_path):
    """The digest's own bytes and the zip end are where a check could have a hole: all their bits, one by one."""
    with quiet(ram_path / "out") as folder:
        for path, load in targets(folder).values():
            raw = path.read_bytes()
            for where in range(max(0, len(raw) - 130) * 8, len(raw) * 8):
                copy = bytearray(raw)
                copy[where // 8] ^= 1 << where % 8
                path.write_bytes(copy)
                assert not accepted(path, load)
            path.write_bytes(raw)


def boundaries(path):
    """Offsets at which a record of a zip file begins, its content begins, or its content ends; and the bytes around
    them."""
    with zipfile.ZipFile(path) as archive:
        starts = [e.header_offset for e in archive.infolist()] + [archive.start_dir]
        ends = [e.header_offset + 30 + len(e.filename) + e.file_size for e in archive.infolist()]
    size = path.stat().st_size
    return sorted(
        {p + d for p in starts + ends + [size - 102, size - 80, size] for d in (-1, 0, 1) if 0 <= p + d < size})


def truncations(path, load, places):
    """(how many of the files cut at `places`, how many of four files with something behind the end) are accepted."""
    raw, cut, appended = path.read_bytes(), 0, 0
    copy = path.with_name("cut_" + path.name)
    copy.write_bytes(raw)
    for place in sorted(places, reverse=True):  # ever shorter, so that one file is enough
        os.truncate(copy, place)
        cut += accepted(copy, load)
    for tail in (b"\0", b"PK", raw[:100], raw):
        copy.write_bytes(raw + tail)
        appended += accepted(copy, load)
    copy.unlink()
    return cut, appended


def check_truncations(ram_path, count):
    total = 0
    with quiet(ram_path / "out") as folder:
        for kind, (path, load) in targets(folder).items():
            size = path.stat().st_size
            rng = seeded(kind)
            places = {rng.randrange(size) for _ in range(count)} | set(boundaries(path) if kind != "manifest" else ())
            assert truncations(path, load, places) == (0, 0), kind
            total += len(places)
    path, load = plain_copy(ram_path / "plain.pkl")
    cut, appended = truncations(path, load, boundaries(path))
    report(truncations=total, accepted=0, control_cut_accepted=cut, control_appended_accepted=appended)
    assert appended  # plain torch.load does find what was cut off, but not what was added


def test_every_truncation_is_found(ram_path):
    check_truncations(ram_path, 100)


@pytest.mark.slow
def test_every_truncation_is_found_long(ram_path):
    check_truncations(ram_path, 1000)


def test_blocks_of_zeros_are_found(ram_path):
    """What a power cut leaves behind where data was never flushed: the right length, but zeros."""
    ours, plain = ram_path / "ours.pkl", ram_path / "plain.pkl"
    write_torch(ours, toy_payload(1, numbers=50_000))
    torch.save(toy_payload(1, numbers=50_000), plain)
    passed = {}
    for path, load in ((ours, read_checkpoint), (plain, lambda p: torch.load(p, weights_only=True))):
        raw = path.read_bytes()
        passed[path.name] = 0
        for start in range(0, len(raw), 4096):
            block = raw[start:start + 4096]
            path.write_bytes(raw[:start] + bytes(len(block)) + raw[start + len(block):])
            passed[path.name] += bool(block.strip(b"\0")) and accepted(path, load)
    report(zero_blocks=len(raw) // 4096, accepted=passed["ours.pkl"], control_accepted=passed["plain.pkl"])
    assert passed["ours.pkl"] == 0 and passed["plain.pkl"] > 10


def test_a_damaged_folder_goes_on_from_the_older_pair(ram_path):
    """End to end: whatever is flipped in the newest files, the run finds the pair before it, or the newest itself."""
    with quiet(ram_path / "out") as folder:
        put(folder, 1)
        put(folder, 2)
        files = [folder.manifest.path, *folder.path.glob("TinySeek_Pre0_1_s2.*")]
        for path in files:
            raw = path.read_bytes()
            for number in range(10):
                copy = bytearray(raw)
                copy[seeded(number).randrange(len(raw))] ^= 1 << number % 8
                path.write_bytes(copy)
                payload, state = folder.newest_good()
                assert payload["step"] == (2 if path == folder.manifest.path else 1) and same(payload, state,
                    payload["step"])
            path.write_bytes(raw)

"""Pickles that run code, in every wrapping and through every loader: all refused, and the file they would create is
absent.

Control arm: the same objects through pickle.loads do create it, so each of them is a live one.
"""
import hashlib
import io
import os
import pickle
import tarfile
import time
import zipfile

import pytest
import torch

from evil_pickles import live_objects, raw_pickles
from file_faults import in_child, quiet, report, toy_payload, toy_state
from tools.checkpoint import load_chain, read_checkpoint, weights_hash, write_torch
from tools.errors import UserError
from tools.saving.archive import read_json, read_torch, verify_torch
from toy_checkpoint import seal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="需要 fork 和 sh")


def zipped(path, pickles, **options):
    """A sealed archive like torch.save's, around hand-made pickles {record name: bytes}."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in {**pickles, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr("archive/" + name, content)
    seal(path)


def tarred(path, content):
    """The oldest torch format."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def sealed_save(path, thing, **options):
    torch.save(thing, path, **options)
    seal(path)


WRAPPINGS = {
    "pickle 0": lambda p, x: p.write_bytes(pickle.dumps(x, 0)),
    "pickle 4": lambda p, x: p.write_bytes(pickle.dumps(x, 4)),
    "torch tar": lambda p, x: tarred(p, pickle.dumps(x, 2)),
    "torch legacy": lambda p, x: torch.save(x, p, _use_new_zipfile_serialization=False),
    "torch zip": lambda p, x: torch.save(x, p), "sealed": write_torch,
    "sealed protocol 4": lambda p, x: sealed_save(p, x, pickle_protocol=4),
    "sealed legacy": lambda p, x: sealed_save(p, x, _use_new_zipfile_serialization=False),
    "in metrics": lambda p, x: write_torch(p, toy_payload(metrics={"loss": [1, {"x": x}]})),
    "in weights": lambda p, x: write_torch(p, toy_payload(weights={"a": torch.ones(2), "b": x})),
    "in state": lambda p, x: write_torch(p, {**toy_state(), "pkl_sha256": "0", "random": x}),
    "TorchScript": lambda p, x: zipped(p,
                                       {"constants.pkl": pickle.dumps(x, 2), "data.pkl": pickle.dumps(x, 2),
                                        "code/a.py": b""}),
    "second data.pkl": lambda p, x: zipped(p, {"data.pkl": pickle.dumps({}, 2), "x/data.pkl": pickle.dumps(x, 2)}),
}


def as_newest(path, evil, name):
    """The file lies in an output folder under a name that a resume would load; a real file stands beside it."""
    out = path / "out"
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    other = {"TinySeek_Pre0_1.pkl": "TinySeek_Pre0_1.state", "TinySeek_Pre0_1.state": "TinySeek_Pre0_1.pkl"}[name]
    write_torch(out / other, toy_payload() if other.endswith("pkl") else {**toy_state(), "pkl_sha256": "0"})
    (out / name).write_bytes(evil.read_bytes())
    folder = quiet(out)
    if evil.stat().st_size % 2:  # half of them are even listed
        files = {n: {"sha256": _whole_digest(out / n), "size": 1} for n in (name, other)}
        entry = {"stem": "TinySeek_Pre0_1", "number": 1, "kind": "", "step": 1, "config": "", "time": "",
                 "files": files}
        folder.manifest.write({"format": 1, "entries": [entry], "pending": None, "drop": [], "backup": None})
    return folder.newest_good()


def _whole_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_base(path, evil):
    """An adapter names the file as its base."""
    base = {"path": evil.name, "hash": weights_hash(toy_payload()["weights"])}
    write_torch(path / "adapter" / "a.pkl", toy_payload(kind="adapter", base={**base, "path": str(evil)}))
    return load_chain(path / "adapter" / "a.pkl")


LOADERS = {
    "read_torch": lambda path, evil: read_torch(evil), "verify_torch": lambda path, evil: verify_torch(evil),
    "read_checkpoint": lambda path, evil: read_checkpoint(evil), "load_chain": lambda path, evil: load_chain(evil),
    "as base": as_base,
    "newest .pkl": lambda path, evil: as_newest(path, evil, "TinySeek_Pre0_1.pkl"),
    "newest .state": lambda path, evil: as_newest(path, evil, "TinySeek_Pre0_1.state"),
    "read_json": lambda path, evil: read_json(evil),
}


def refuses(load, path, evil):
    """Every loader answers with a plain refusal."""
    try:
        load(path, evil)
    except UserError as error:
        return error.code in (3, 4)
    return False


def test_every_loader_refuses_every_pickle(ram_path):
    canary, evil = ram_path / "canary", ram_path / "evil.pkl"
    (ram_path / "adapter").mkdir()
    objects = live_objects(canary)
    files = 0
    for number, (name, thing) in enumerate(objects.items()):
        for turn, (wrapping, wrap) in enumerate(WRAPPINGS.items()):
            wrap(evil, thing)
            files += 1
            loaders = LOADERS if (number + turn) % 7 == 0 else {k: LOADERS[k]
                                                                for k in ("read_torch", "read_checkpoint")}
            for loader, load in loaders.items():
                assert refuses(load, ram_path, evil), (name, wrapping, loader)
    for name, content in raw_pickles(canary).items():
        for wrap in (evil.write_bytes, lambda c: zipped(evil, {"data.pkl": c}), lambda c: tarred(evil, c)):
            wrap(content)
            files += 1
            for loader, load in LOADERS.items():
                assert refuses(load, ram_path, evil), (name, loader)
    assert not canary.exists() and len(objects) >= 30
    report(pickles=len(objects) + len(raw_pickles(canary)), files=files, loaders=len(LOADERS), executed=0)


def test_torch_alone_would_refuse_them_too(ram_path, monkeypatch):
    """Two walls: without our own look at the names, weights_only=True still holds."""
    monkeypatch.setattr("tools.saving.archive._check_archive", lambda file, path: None)
    canary, evil = ram_path / "canary", ram_path / "evil.pkl"
    for name, thing in live_objects(canary).items():
        for wrapping in ("sealed", "in metrics", "in weights", "TorchScript"):
            WRAPPINGS[wrapping](evil, thing)
            assert refuses(LOADERS["read_checkpoint"], ram_path, evil), (name, wrapping)
    assert not canary.exists()


def test_a_harmless_twin_of_each_wrapping_is_accepted(ram_path):
    """So that the refusals above are for what is inside, not for the wrapping of our own files."""
    path = ram_path / "a.pkl"
    for wrapping in ("sealed", "in metrics"):
        WRAPPINGS[wrapping](path, toy_payload())
        assert read_checkpoint(path)
    sealed_save(path, toy_payload())
    assert read_checkpoint(path)
    WRAPPINGS["in state"](path, (1, 2))
    assert read_torch(path)


def test_control_pickle_loads_runs_them(ram_path):
    """Control arm: what a loader without weights_only does with the very same objects."""
    ran = []
    for number, name in enumerate(live_objects(ram_path / "x")):
        place = ram_path / str(number)
        place.mkdir()
        content = pickle.dumps(live_objects(place / "canary")[name], 4)
        in_child(pickle.loads, content)
        end = time.monotonic() + 5
        while not list(place.glob("canary*")) and time.monotonic() < end:  # some leave the work to another process
            time.sleep(0.01)
        ran += [name] * bool(list(place.glob("canary*")))
    report(control_pickles=number + 1, control_executed=len(ran))
    assert set(ran) == set(live_objects(ram_path / "x"))

"""Live malicious objects for test_malicious.py: unpickling any of them creates the file `canary`."""
import bdb
import codecs
import cProfile
import functools
import importlib
import io
import marshal
import operator
import os
import pathlib
import pickle
import profile
import runpy
import shutil
import subprocess
import tempfile
import timeit

import numpy as np
import torch


class Evil:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class EvilItems(Evil):
    """A harmless dict whose items are made by a call."""

    def __reduce__(self):
        return dict, (), None, None, iter([("k", Evil(self.call[0], *self.call[1]))])


class EvilState(Evil):
    """A harmless exception whose attributes are made by a call."""

    def __reduce__(self):
        return Exception, (), {"k": Evil(self.call[0], *self.call[1])}


def live_objects(canary):
    """{name: object}. Writes a few more files beside `canary`."""
    touch, python, name = f"touch {canary}", f"open({str(canary)!r}, 'w').close()", str(canary)
    script, array, old = (str(canary.with_name(n)) for n in ("script.py", "array.npy", "old.bin"))
    pathlib.Path(script).write_text(python)
    system = Evil(os.system, touch)
    np.save(array, np.array([system], dtype=object), allow_pickle=True)
    torch.save(system, old, _use_new_zipfile_serialization=False)
    byte_code = Evil(marshal.loads, marshal.dumps(compile(python, "x", "exec")))
    return {
        "os.system": system, "os.popen": Evil(os.popen, touch), "os.mkdir": Evil(os.mkdir, name),
        "os.makedirs": Evil(os.makedirs, name),
        "os.symlink": Evil(os.symlink, "/", name), "os.mkfifo": Evil(os.mkfifo, name),
        "os.rename": Evil(os.rename, script, name),
        "os.link": Evil(os.link, script, name), "os.open": Evil(os.open, name, os.O_CREAT),
        "os.replace": Evil(os.replace, array, name),
        "os.spawnlp": Evil(os.spawnlp, os.P_WAIT, "touch", "touch", name),
        "os.execvp": Evil(os.execvp, "touch", ["touch", name]),
        "subprocess.Popen": Evil(subprocess.Popen, ["touch", name]),
        "subprocess.call": Evil(subprocess.call, ["touch", name]),
        "subprocess.run": Evil(subprocess.run, ["touch", name]),
        "subprocess.getoutput": Evil(subprocess.getoutput, touch),
        "subprocess.check_output": Evil(subprocess.check_output, ["touch", name]),
        "eval": Evil(eval, python), "exec": Evil(exec, python), "exec byte code": Evil(exec, byte_code),
        "exec compile": Evil(exec, Evil(compile, python, "x", "exec")),
        "exec import": Evil(exec, f"__import__('os').system({touch!r})"),
        "open": Evil(open, name, "w"), "io.FileIO": Evil(io.FileIO, name, "w"),
        "codecs.open": Evil(codecs.open, name, "w"),
        "Path.touch": Evil(pathlib.Path.touch, canary), "Path.write_text": Evil(pathlib.Path.write_text, canary, "x"),
        "shutil.copy": Evil(shutil.copy, script, name), "shutil.move": Evil(shutil.move, script, name),
        "runpy": Evil(runpy.run_path, script),
        "tempfile": Evil(tempfile.mkdtemp, "", name),
        "timeit": Evil(timeit.timeit, python, "pass", timeit.default_timer, 1),
        "cProfile": Evil(cProfile.run, python, name), "profile": Evil(profile.run, python, name),
        "bdb": Evil(bdb.Bdb.run, Evil(bdb.Bdb), python),
        "map": Evil(list, Evil(map, os.system, [touch])), "reduce": Evil(functools.reduce, os.open, [name, os.O_CREAT]),
        "methodcaller": Evil(list, Evil(map, Evil(operator.methodcaller, "touch"), [canary])),
        "getattr": Evil(list, Evil(map, Evil(getattr, Evil(importlib.import_module, "os"), "system"), [touch])),
        "pickle.loads": Evil(pickle.loads, pickle.dumps(system)),
        "pickle in a pickle": Evil(pickle.loads, pickle.dumps(Evil(pickle.loads, pickle.dumps(system)))),
        "numpy.load": Evil(np.load, array, None, True),
        "torch.load": Evil(torch.storage._load_from_bytes, pathlib.Path(old).read_bytes()),
        "torch.save": Evil(torch.save, 1, name), "tofile": Evil(np.ndarray.tofile, Evil(np.zeros, 1), name),
        "items": EvilItems(os.system, touch), "attributes": EvilState(os.system, touch),
        "deep": {"a": [({"b": (system,)},)]}, "key": {(1, system): 2},
    }


def raw_pickles(canary):
    """{name: bytes}: opcodes that no pickler writes. The last ones are only live in loaders that trust them."""
    touch = f"touch {canary}".encode()
    return {
        "INST": b"(S'" + touch + b"'\nios\nsystem\n.", "OBJ": b"(cos\nsystem\nS'" + touch + b"'\no.",
        "GLOBAL": b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        "python 2 name": b"c__builtin__\neval\n(S'__import__(\"os\").system(\"" + touch + b"\")'\ntR.",
        "posix": b"cposix\nsystem\n(S'" + touch + b"'\ntR.", "popped": b"cos\nsystem\n(S'" + touch + b"'\ntR0N.",
        "memo": b"cos\nsystem\np0\n0g0\n(S'" + touch + b"'\ntR.",
        "dotted": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
        "persistent": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
        "extension": b"\x82\x01(S'" + touch + b"'\ntR.",
        "rebuild": b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n(S'" + touch + b"'\ntRtR.",
    }

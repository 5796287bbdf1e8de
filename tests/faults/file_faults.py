"""What the file-level fault tests share: child processes that meet a real end, and a folder that must survive it."""
import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_checkpoint import same, toy_payload, toy_state  # noqa: E402, F401

from tools.checkpoint import best_name, checkpoint_name, final_name  # noqa: E402, F401
from tools.errors import UserError  # noqa: E402
from tools.saving.run_folder import RunFolder  # noqa: E402


def in_child(work, *arguments):
    """Run `work` in a forked process. Returns its exit status: 0, a UserError's code, 99 for a traceback, -9 when
    killed."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work(*arguments)
            code = 0
        except UserError as error:
            code = error.code
        except MemoryError:
            code = 98
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def quiet(path, label="Pre"):
    return RunFolder(path, label, warn=lambda text: None)


def put(folder, step, stem=None, numbers=64, **kind):
    stem = stem or checkpoint_name(folder.label, 0, 1, step=step)
    return folder.save(stem, toy_payload(step, numbers=numbers), toy_state(step, numbers), **kind)


def temporary_files(path):
    return [n for n in os.listdir(path) if n.startswith(".tmp-")]


def report(**counts):
    """The counts that the README may quote; pytest -s shows them."""
    print("\nfault:", " ".join(f"{k}={v}" for k, v in counts.items()))


WATCHED = ("open", "write", "fsync", "replace", "unlink", "mkdir")


def die_at(number, torn):
    """From now on, SIGKILL this process at its `number`-th call that changes files. `torn`: a write is cut in half
    first."""
    count = 0

    def watch(name, real):
        def call(*arguments, **options):
            nonlocal count
            writes = name != "open" or arguments[1] & (os.O_CREAT | os.O_WRONLY)
            count += bool(writes)
            if count == number and writes:
                if name == "write" and torn:
                    real(arguments[0], bytes(arguments[1])[:max(1, len(arguments[1]) // 2)])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call

    for name in WATCHED:
        setattr(os, name, watch(name, getattr(os, name)))


def seeded(name):
    return random.Random(name)

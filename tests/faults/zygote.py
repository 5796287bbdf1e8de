"""A process that has imported everything, and forks a run of a stage script for every line it reads: kill -9 by the
hundred.

The children are real processes that run the real script's main() and die of real signals; only the imports are paid for
once. A line on stdin is a JSON object, see `child`. The answers on stdout: the child's pid, then, when it has ended,
its exit status.
"""
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

import torch  # noqa: E402

import sabotage  # noqa: E402
from tools import cli  # noqa: E402
from tools.process.signals import end_on_signals  # noqa: E402
from train_agent import dpo_train, lora_train, memory_train, pre_train, prefix_train, rl_train, sft_train  # noqa: E402
from train_agent.trainers.running import diary

SCRIPTS = {"pre": pre_train, "sft": sft_train, "dpo": dpo_train, "lora": lora_train, "prefix": prefix_train,
           "memory": memory_train, "rl": rl_train}


def child(job):
    """job: stage; argv; said (file for its output); sabotage ({name: argument} of sabotage.py, applied before the
    run)."""
    code = 99
    try:
        out = os.open(job["said"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for number in (1, 2):
            os.dup2(out, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        end_on_signals()
        for name, argument in job.get("sabotage", {}).items():
            getattr(sabotage, name)(argument)
        code = cli._run(lambda: SCRIPTS[job["stage"]].main(job["argv"]) and None) or 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    diary.OpenedLoop.look_ahead = lambda self: None      # measures for seconds; its steps are not the run's
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the terminal's Ctrl-C is pytest's business
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(job)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

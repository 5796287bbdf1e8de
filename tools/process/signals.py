"""SIGTERM and Ctrl-C before a run has anything to save: the process ends with 143, without a traceback.

The scripts call `end_on_signals()` before they import torch, which takes seconds; `guarded` (tools/cli.py) goes on in
good order; once a run has begun, the loop's own handlers (train_agent/trainers/running/signals_and_guards.py) take over
and finish the step.
"""
import os
import signal
import sys
import threading

from tools.process.first import check_machine, in_notebook

STOPPED = 143
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# whether a run was asked to stop; one that was writing its final checkpoint has ended with success all the same
heard = False


def end_on_signals():
    """For the top of a script: from now on these signals end the process at once. Nothing is there yet to be cleaned
    up, and an exception in the middle of somebody's import would be told with a traceback. An old Python or a missing
    package is explained."""
    check_machine()
    if not in_notebook():
        _install(_leave_now)


def end_in_good_order():
    """Where a script begins its work: the first signal ends it, temporary files are removed on the way out, more
    signals do not disturb that. Does nothing in a process that did not begin with `end_on_signals`."""
    if signal.getsignal(signal.SIGTERM) is _leave_now:
        _install(_leave)


def ctrl_c_interrupts():
    """For a conversation: Ctrl-C breaks off a reply, as a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def outcome_is_decided():
    """Where a script's work is over: a signal during the interpreter's own exit, which takes a moment once torch is
    loaded, changes neither the exit code nor what was said."""
    if not in_notebook():
        _install(signal.SIG_IGN)


def _install(handler):
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


def _leave_now(*_):
    os._exit(STOPPED)


def _leave(*_):
    _install(signal.SIG_IGN)
    say_now("已停止。")
    sys.exit(STOPPED)


def say_now(text):
    """Print a line on stderr from within a signal handler: straight to the descriptor, past buffers that may just be in
    use."""
    try:
        os.write(2, f"\n{text}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8", "replace"))
    except OSError:
        pass


def leave_if_heard():
    """Between two runs of one process: a stop that the first was asked for is a stop of both."""
    if heard:
        print("这一阶段已经完成并保存，后面的还没有开始：再运行同一条命令就接着来。", file=sys.stderr)
        sys.exit(STOPPED)

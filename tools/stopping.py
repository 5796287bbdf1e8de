"""SIGTERM and Ctrl-C before a run has anything to save: the process ends with 143, without a traceback.

The scripts call `end_on_signals()` before they import torch, which takes seconds; once a run has begun, the loop's own
handlers (train_agent/trainers/watch.py) take over and finish the step.
"""
import signal
import sys
import threading

STOPPED = 143
SIGNALS = (signal.SIGTERM, signal.SIGINT)

heard = False       # whether a run was asked to stop; one that was writing its final checkpoint has ended with success all the same


def end_on_signals():
    """From now on the first of these signals ends the process in good order; more of them do not disturb that."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _end)


def _end(*_):
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(STOPPED)


def leave_if_heard():
    """Between two runs of one process: a stop that the first was asked for is a stop of both."""
    if heard:
        sys.exit(STOPPED)

"""Regular expressions of strangers, in bounded time: a pattern can take longer than the universe on a short reply, and
nothing stops it from inside. So another process searches, and is ended when it does not answer."""

import json
import subprocess
import sys

SECONDS = 15.0          # without an answer: far more than a sane pattern needs on a busy machine
WORK = """
import json, re, sys
for pattern, text in json.load(sys.stdin):
    print(int(re.search(pattern, text) is not None), flush=True)
"""

_hopeless = set()       # patterns that have hung once are not tried again


def found(pairs, seconds=SECONDS):
    """[(pattern, text)] -> [True or False, or None where the search had to be stopped]. The patterns are valid."""
    answers = [None] * len(pairs)
    waiting = [i for i, (pattern, _) in enumerate(pairs) if pattern not in _hopeless]
    while waiting:
        told = _searched([pairs[i] for i in waiting], seconds)
        for i, answer in zip(waiting, told):
            answers[i] = answer
        rest = waiting[len(told):]
        if rest:
            _hopeless.add(pairs[rest[0]][0])
        waiting = [i for i in rest if pairs[i][0] not in _hopeless]
    return answers


def _searched(pairs, seconds):
    """Answers as far as one process gets; what it hangs on is the next one."""
    process = subprocess.Popen([sys.executable, "-I", "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    try:
        out, _ = process.communicate(json.dumps(pairs).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    finally:
        process.kill()
    return [line == b"1" for line in out.split()]

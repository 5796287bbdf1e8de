"""What the parts of bench/gpu.sh share: the device, precise clocks, a line of what is known so far."""

import json
import sys
import time
import traceback

import torch

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work, times=1):
    """Mean seconds of `work`, the device waited for before and after."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


def so_far(**found):
    """Kept even when the part is cut off after this."""
    print(json.dumps({"so far": found}, ensure_ascii=False), flush=True)


def skipped(why):
    """End the part: it cannot be asked here."""
    print(json.dumps({"state": "skipped", "why": why}), flush=True)
    raise SystemExit(0)


def run(works):
    """{name: work}: all of them, whatever fails -> what they returned; what failed is told, with the line where."""
    found, wrong = {}, {}
    for name, work in works.items():
        try:
            found[name] = work()
        except Exception as error:                              # told by name; the others are still asked
            place = traceback.extract_tb(error.__traceback__)[-1]
            wrong[name] = f"{type(error).__name__} {str(error)[:200]} ({place.name}, line {place.lineno})"
    return found, wrong


def asked(answers):
    """The command line of a part: its name and --quick -> calls answers[name](quick); its dict is the part's line."""
    name, quick = sys.argv[1], "--quick" in sys.argv
    found = answers[name](quick)
    print(json.dumps(found, ensure_ascii=False), flush=True)
    raise SystemExit(int(bool(found.get("failed"))))

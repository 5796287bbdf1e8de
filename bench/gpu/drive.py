"""Asks the questions of bench/gpu.sh one after the other, each in a process of its own with a time limit.

One JSON line per part, printed as soon as it ends, so that a call that is cut off still tells most: {"part", "state":
"ok" | "failed" | "skipped" | "cut off", "why", "seconds", "cpu_seconds", "card", "commit", …what it measured}. A part
that prints {"so far": …} lines keeps them when it is cut off. Exit code 1 where a part failed.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "numpy", "tqdm", "jieba")     # without these nothing of ours starts
PACKED = ("jieba", "tqdm")                       # small enough to bring along
UNUSED = ("analyse", "posseg", "lac_small")      # of jieba: most of its bytes
# name: (module below bench/gpu, seconds on a GPU, seconds with --quick); the order is that of the questions
PARTS = {
    "laws_float32": ("laws", 60, 60), "laws_bf16": ("laws", 30, 40), "laws_fp16": ("laws", 30, 40),
    "stages": ("stages", 50, 50),
    "pipeline": ("pipeline", 130, 90), "fp16_resume": ("pipeline", 45, 45), "bf16_resume": ("pipeline", 45, 45),
    "speed": ("speed", 75, 30), "profile": ("speed", 25, 20), "minimind": ("speed", 25, 10),
    "writing": ("writing", 35, 30), "compiling": ("writing", 45, 20), "memory": ("writing", 30, 30),
}
WHOLE = 480.0                                    # seconds of one call


def run_part(name, quick, left, patience=1.0):
    """-> the JSON line of one part. patience: its limit is multiplied by it."""
    module, *limits = PARTS[name]
    limit = min(limits[quick] * patience, left)
    if limit < 5:
        return {"state": "skipped", "why": f"the call's {WHOLE:.0f} seconds are used up"}
    command = [sys.executable, str(ROOT / "bench/gpu" / f"{module}.py"), name, *["--quick"] * quick]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    started = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
                               start_new_session=os.name != "nt")
    try:
        said, wrong = started.communicate(timeout=limit)
        cut = False
    except subprocess.TimeoutExpired:
        end(started)
        said, wrong = started.communicate()
        cut = True
    return result_of(said, wrong, started.returncode, cut)


def end(process):
    """The part and what it has started."""
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, 9)


def result_of(said, wrong, code, cut):
    """What a part printed -> its line. What it had found before it was cut off or failed is kept."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    found = {}
    for line in lines:
        found |= line.get("so far", line)
    if cut:
        return {"state": "cut off", **found}
    if code:
        last = " | ".join(wrong.strip().splitlines()[-4:])[:600]
        return {"state": "failed", **found, **({} if found.get("failed") else {"why": last})}
    return {"state": "ok", **found}


def cpu_seconds():
    """Of all parts that have ended; unlike `seconds` it does not depend on what else the machine does."""
    spent = os.times()
    return spent.children_user + spent.children_system


def card():
    """The name of what answers, and which torch."""
    import torch
    there = torch.cuda.is_available()
    return {"card": torch.cuda.get_device_name() if there else "cpu", "torch": torch.__version__,
            "cuda": torch.version.cuda if there else None, "python": sys.version.split()[0]}


def commit():
    """None where there is no git or no repository: the working tree travels alone."""
    if not shutil.which("git"):
        return None
    asked = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return asked.stdout.strip() or None


def pack():
    """Copy jieba and tqdm as they are installed here to .gpu_packages -> its size in MiB."""
    there = ROOT / ".gpu_packages"
    for name in PACKED:
        source = Path(importlib.util.find_spec(name).origin).parent
        shutil.copytree(source, there / name, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("__pycache__", *UNUSED, "tests"))
    return sum(p.stat().st_size for p in there.rglob("*") if p.is_file()) / 2 ** 20


def parse(argv):
    parser = argparse.ArgumentParser(description="显卡上的每个问题，一次问完（每部分结束时打印一行 JSON）")
    parser.add_argument("--quick", action="store_true", help="在 CPU 上用玩具大小走一遍")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="只问这些")
    parser.add_argument("--output", type=Path, help="把这些行也接在这个文件后面，如 bench/results/gpu.jsonl")
    parser.add_argument("--patience", type=float, default=1.0, help="每部分的时限乘以它：机器很忙时写大些")
    parser.add_argument("--pack", action="store_true", help="把裸机上缺的小包放进 .gpu_packages/，然后结束")
    return parser.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    if options.pack:
        print(json.dumps({"packed_mib": round(pack(), 1)}))
        return 0
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(json.dumps({"state": "failed", "why": f"missing packages: {' '.join(missing)}; run --pack first"}))
        return 2
    about, begun, states = {**card(), "commit": commit(), "quick": options.quick}, time.monotonic(), []
    if about["card"] == "cpu" and not options.quick:
        print(json.dumps({"state": "failed", "why": "no CUDA device here; --quick runs it all on the CPU", **about}))
        return 2
    for name in options.parts:
        since, spent = time.monotonic(), cpu_seconds()
        left = WHOLE * options.patience - (since - begun)
        found = run_part(name, options.quick, left, options.patience)
        line = json.dumps({"part": name, **found, "seconds": round(time.monotonic() - since, 1),
                           "cpu_seconds": round(cpu_seconds() - spent, 1), **about}, ensure_ascii=False)
        states.append(found["state"])
        print(line, flush=True)
        if options.output:
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    counts = {state: states.count(state) for state in ("ok", "failed", "cut off", "skipped")}
    print(json.dumps({"part": "all", **counts, "seconds": round(time.monotonic() - begun, 1),
                      "cpu_seconds": round(cpu_seconds(), 1), **about}), flush=True)
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""The whole way on this device: run.py for a minute and a half, stopped half-way and started again; and a killed run
in half precision, resumed: the loss scale comes back with it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu.common import DEVICE, asked, so_far
from tools.checkpoint import read_pair

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data/hand_text.jsonl"
NO_PICTURES = "--logging_steps=none"           # a bare machine has no matplotlib
# run.py with nothing but its way: words, steps and lookings are few
SMALL = ["--quick", NO_PICTURES, "--max_steps=6", "--eval_steps=none", "--save_best_model=false", "--max_len=64",
         "--batch_size=2", "--accumulation_steps=1", "--eval_share=0.001", f"--vocab_data_path={DATA}"]


def start(script, folder, *words):
    """A script of ours as a user starts it, all its files below `folder`."""
    own = [f"--{name}={folder / value}" for name, value in
           {"out_dir": "out", "log_dir": "logs", "log_file": "log.txt"}.items()]
    return subprocess.Popen([sys.executable, str(ROOT / script), *own, f"--device={DEVICE}", *words],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def ended(process):
    wrong = process.communicate()[1]
    assert process.returncode == 0, f"exit {process.returncode}: {wrong.strip()[-300:]}"


def stopped(process, enough):
    """SIGTERM as soon as enough(), unless it was done before -> its exit code."""
    while process.poll() is None and not enough():
        time.sleep(0.05)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate()
    return process.returncode


def pipeline(quick):
    words = SMALL if quick else ["--minutes", "1.5", NO_PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        folder, begun = Path(folder), time.monotonic()
        half = (folder / "out/TinySeek_Pre_final.pkl").exists if quick else lambda: time.monotonic() - begun > 40
        code = stopped(start("run.py", folder, *words), half)
        so_far(first_exit=code)
        ended(start("run.py", folder, *words))
        report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    sft = report["scores"]["sft"]
    return {"first_exit": code, "resumed": code != 0, "wall_seconds": round(time.monotonic() - begun, 1),
            "scores": {"contents": sft["overall"], "phrasings": sft["phrasings"]["overall"],
                       "outside": sft["outside"]},
            "bits_per_char": report["bits_per_char"], "steps": report["steps"], "tokens": report["tokens_seen"],
            "failed": {} if code in (0, 143) else {"stop": f"exit {code} after SIGTERM"}}


def checkpoints(folder):
    """Those with both files, the newest last."""
    whole = [path for path in (folder / "out").glob("TinySeek_Pre*_s*.pkl") if path.with_suffix(".state").exists()]
    return sorted(whole, key=lambda path: path.stat().st_mtime)


def half_resume(precision, quick):
    """Killed (nothing may be saved then) after its first checkpoint, started again: goes on from there."""
    steps = 8 if quick else 200
    words = [f"--json_data_path={DATA}", "--eval_share=0", f"--mixed_precision={precision}", f"--max_steps={steps}",
             "--max_epochs=1000", f"--save_steps={steps // 4}", "--eval_steps=none", NO_PICTURES,
             "--preset=tiny", "--pair_start=0", "--batch_size=2", "--max_len=64"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        process = start("train_agent/pre_train.py", folder, *words)
        while process.poll() is None and not checkpoints(folder):
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        process.communicate()
        _, before = read_pair(checkpoints(folder)[-1])
        ended(start("train_agent/pre_train.py", folder, *words))
        _, after = read_pair(folder / "out/TinySeek_Pre_final.pkl")
    scales = [state["scaler"].get("scale") for state in (before, after)]
    wrong = {}
    if precision == "fp16" and None in scales:
        wrong["scale"] = f"no loss scale in the checkpoints: {scales}"
    if after["step"] != steps or not before["step"] < steps:
        wrong["steps"] = f"{before['step']} then {after['step']}"
    return {"killed_at": before["step"], "steps": after["step"], "scales": scales,
            "loss": after["metrics"].get("loss"), "failed": wrong}


if __name__ == "__main__":
    asked({"pipeline": pipeline, **{f"{p}_resume": lambda quick, p=p: half_resume(p, quick) for p in ("fp16", "bf16")}})

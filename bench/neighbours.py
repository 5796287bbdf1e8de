"""How long does a training step take beside other work on the same cores? Busy loops, and other trainings of one
thread.

    python bench/neighbours.py [--seconds 6] [--preset tiny]

Each figure is the median step of a process of its own, started anew: as the scripts start, and as OpenMP's own defaults
would have it (its threads spin while they wait for each other, and a neighbour's turns go by meanwhile).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import WAITING, check_machine

NEIGHBOURS = {"alone": (0, 0), "1 busy loop": (1, 0), "2 busy loops": (2, 0), "1 training": (0, 1),
              "2 trainings": (0, 2)}
LOOP = "while True: pass"


def step_seconds(preset, seconds):
    """The median step of this process: forward, backward and optimizer, on random ids of the preset's batch."""
    import statistics

    import torch

    from model import ModelConfig, TinySeek
    from model.config import MODEL_KEYS
    from tools.config_manager import ConfigManager
    from train_agent.trainers.optimizers import build_optimizers
    options = ConfigManager(preset=preset, stage="pre").stage("pre")
    torch.manual_seed(0)
    model = TinySeek(ModelConfig.from_dict({k: options[k] for k in MODEL_KEYS})).train()
    optimizers = build_optimizers([(n, p, 1e-3) for n, p in model.named_parameters()], options)
    ids = torch.randint(300, options["vocab_size"], (options["batch_size"], options["max_len"]))
    found, end = [], time.perf_counter() + seconds + 2.0
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids, labels=ids).total_loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:] or found)


@contextlib.contextmanager
def beside(loops, trainings, preset):
    """So many neighbours run while the block does."""
    others = [[sys.executable, "-c", LOOP]] * loops
    others += [[sys.executable, __file__, "--inner", "600", "--preset", preset]] * trainings
    started = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
               for command in others]
    time.sleep(4.0 if trainings else 0.2)                # they have to be at work
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measured(preset, seconds, own):
    """One process; own: with what the scripts set before torch is loaded, else as OpenMP does by itself."""
    clean = {k: v for k, v in os.environ.items() if k not in (*WAITING, "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    env = clean if own else {**clean, "TINYSEEK_PLAIN": "1"}
    command = [sys.executable, __file__, "--inner", str(seconds), "--preset", preset]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--inner", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inner is not None:
        if not os.environ.get("TINYSEEK_PLAIN"):
            check_machine()
        print(step_seconds(asked.preset, asked.inner))
        return
    seconds, result = 0.5 if asked.quick else asked.seconds, {}
    for name, (loops, trainings) in NEIGHBOURS.items():
        with beside(loops, trainings, asked.preset):
            result[name] = {"ours": measured(asked.preset, seconds, True),
                            "plain": measured(asked.preset, seconds, False)}
        times = {kind: value / result["alone"][kind] for kind, value in result[name].items()}
        print(f"{name:14} ours {result[name]['ours']:.3f} s ({times['ours']:.2f} x)   "
              f"OpenMP's defaults {result[name]['plain']:.3f} s ({times['plain']:.2f} x)", flush=True)
    print(json.dumps({"preset": asked.preset, "seconds_per_step": result}))


if __name__ == "__main__":
    main()

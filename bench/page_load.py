"""How much slower does a training get while five people watch its page? One thread, with and without viewers by turns.

    python bench/page_load.py [--seconds 240] [--turn 10] [--viewers 5]

The page's server runs all the time, as it does beside a real training; in every second turn the viewers ask it for what
a browser asks for, every three seconds each. Last line: JSON with the seconds of a step both ways, their ratio, and the
share of the time that the same questions and the exam of the run's own diary take.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

EVERY = 3.0             # seconds between two looks, as in the page


def view(url, watching, ended):
    """One viewer: what curves.js asks for."""
    def get(path):
        with urllib.request.urlopen(url + path, timeout=60) as answer:
            return json.load(answer)
    while not ended.is_set():
        if watching.is_set():
            for run in get("/curves")["runs"][:1]:
                get("/curves/" + run["name"])
        time.sleep(EVERY)


def timed_loop(stage, watching, seconds, turn):
    """A training that ends after so many seconds; its `times` are (watched, seconds of a step), `answering` those of
    its answers."""
    from train_agent.trainers.running.diary import OpenedLoop

    class Timed(OpenedLoop):
        begun, times, answering = None, (), 0.0

        def optimize(self, *rest):
            start = time.perf_counter()
            self.begun = self.begun or start
            turns = int((start - self.begun) / turn)
            (watching.set if turns % 2 else watching.clear)()
            super().optimize(*rest)
            if (start - self.begun) % turn > EVERY:                # until every viewer has heard of it
                self.times += ((turns % 2, time.perf_counter() - start),)
            self.finished = start - self.begun > seconds

        def show(self):
            start = time.perf_counter()
            super().show()
            self.answering += time.perf_counter() - start

        def look_ahead(self):
            pass
    return Timed(stage)


def measure(seconds, turn, viewers, folder):
    from tools.config_manager import ConfigManager
    from tools.demo_data import write_demo
    from tools.process.page import READY, start
    from train_agent.trainers.build_stage import builder
    paths = write_demo(folder / "data")
    manager = ConfigManager(
        overrides={"out_dir": str(folder / "out"), "log_dir": str(folder / "logs"), "log_file": str(folder / "log.txt"),
                   "threads": 1, "sft.json_data_path": str(paths["sft"]), "sft.max_epochs": 100, "eval_steps": None,
                   "sft.pretraining_model_path": None, "save_steps": None, "vocab_data_path": str(paths["sft"])},
        preset="tiny", stage="sft")
    options = manager.stage("sft")
    watching, ended = multiprocessing.Event(), multiprocessing.Event()
    process = start(options | {"open": False}, folder / "out")
    url = next(line for line in process.stdout if READY in line).partition(READY)[2].split()[0]
    people = [multiprocessing.Process(target=view, args=(url, watching, ended)) for _ in range(viewers)]
    for one in people:
        one.start()
    loop = timed_loop(builder("sft")(options), watching, seconds, turn)
    loop.run()
    ended.set()
    process.stdin.close()
    for one in people:
        one.join()
    return figures(loop, viewers)


def figures(loop, viewers):
    steps = {watched: [t for w, t in loop.times if w == watched] for watched in (0, 1)}
    alone, watched = (statistics.median(steps[w]) for w in (0, 1))
    mean = statistics.mean(steps[1]) / statistics.mean(steps[0])
    return {"viewers": viewers, "steps": [len(steps[0]), len(steps[1])], "step_alone_s": round(alone, 4),
            "step_watched_s": round(watched, 4), "ratio_median": round(watched / alone, 4),
            "ratio_mean": round(mean, 4), "answers_share": round(loop.answering / loop.seconds, 4)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--turn", type=float, default=10)
    parser.add_argument("--viewers", type=int, default=5)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        print(json.dumps(measure(options.seconds, options.turn, options.viewers, Path(folder))))


if __name__ == "__main__":
    main()

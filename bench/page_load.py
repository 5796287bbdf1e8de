"""How much slower does a training get while five people watch its page? One thread, with and without viewers by turns.

    python bench/page_load.py [--seconds 240] [--turn 10] [--viewers 5]

The page's server runs all the time, as it does beside a real training; in every second turn the viewers ask it for what
a browser asks for, every three seconds each. Last line: JSON with the seconds of a step both ways, by the clock and of
this thread's own work, their ratios; how much of one core the server takes while it is watched (Linux); and the share
of the time that the same questions and the exam of the run's own diary take. Beside other work on the same cores the
clock says little, the work and the server's share of a core say more.
"""

import argparse
import json
import multiprocessing
import os
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


def cpu_seconds(pid):
    """What a process has worked so far; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed_loop(stage, watching, seconds, turn, server):
    """A training that ends after so many seconds; its `times` are (watched, seconds of a step by the clock, of its own
    work), `answering` those of its answers, `turned` when each turn began and what the server had worked by then."""
    from train_agent.trainers.running.diary import OpenedLoop

    class Timed(OpenedLoop):
        begun, times, answering, turned = None, (), 0.0, []

        def optimize(self, *rest):
            start, work = time.perf_counter(), time.thread_time()
            self.begun = self.begun or start
            turns = int((start - self.begun) / turn)
            if turns == len(self.turned):
                self.turned.append((start, cpu_seconds(server)))
                (watching.set if turns % 2 else watching.clear)()
            super().optimize(*rest)
            if (start - self.begun) % turn > EVERY:                # until every viewer has heard of it
                self.times += ((turns % 2, time.perf_counter() - start, time.thread_time() - work),)
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
    from tools.process.page import start
    from train_agent.trainers.build_stage import builder
    paths = write_demo(folder / "data")
    manager = ConfigManager(
        overrides={"out_dir": str(folder / "out"), "log_dir": str(folder / "logs"), "log_file": str(folder / "log.txt"),
                   "threads": 1, "sft.batch_size": 1, "sft.json_data_path": str(paths["sft"]), "sft.max_epochs": 100,
                   "eval_steps": None, "sft.pretraining_model_path": None, "save_steps": None,
                   "vocab_data_path": str(paths["sft"])}, preset="tiny", stage="sft")
    options = manager.stage("sft")
    watching, ended = multiprocessing.Event(), multiprocessing.Event()
    process = start(options | {"open": False}, folder / "out")
    while not hasattr(process, "address"):
        time.sleep(0.1)
    people = [multiprocessing.Process(target=view, args=(process.address, watching, ended)) for _ in range(viewers)]
    for one in people:
        one.start()
    loop = timed_loop(builder("sft")(options), watching, seconds, turn, process.pid)
    loop.run()
    ended.set()
    process.stdin.close()
    for one in people:
        one.join()
    return figures(loop, viewers)


def figures(loop, viewers):
    def ratio(column, mean):
        alone, watched = (mean(one[column] for one in loop.times if one[0] == w) for w in (0, 1))
        return round(watched / alone, 4)
    pairs = list(zip(loop.turned, loop.turned[1:]))
    shares = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs]
    idle, watched = (statistics.mean(shares[turn::2]) for turn in (0, 1))
    return {"viewers": viewers, "steps": [sum(one[0] == w for one in loop.times) for w in (0, 1)],
            "step_s": round(statistics.median(one[1] for one in loop.times), 4),
            "ratio_clock": ratio(1, statistics.median), "ratio_work": ratio(2, statistics.median),
            "server_core_share": {"idle": round(idle, 4), "watched": round(watched, 4)},
            "answers_share": round(loop.answering / loop.seconds, 4)}


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

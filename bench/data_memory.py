"""Does memory grow with the data? Trains on a small and on a large JSONL and compares peak anonymous memory and speed.

    python bench/data_memory.py [--large_mb 2000] [--quick]

Anonymous memory (what cannot be dropped for another program) of the training process and all its children, sampled
every 0.2 s. Linux only: it reads /proc.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from bench.measure import draw
from tools.cli import guarded, parse
from tools.demo_data import write_demo
from tools.logs.reader import read_log

EXTRA = [("--small_mb", {"type": int, "default": 20, "help": "小文件的大小（MB）"}),
         ("--large_mb", {"type": int, "default": 2000, "help": "大文件的大小（MB）"}),
         ("--png", {"metavar": "文件", "default": str(ROOT / "out/data_memory.png"), "help": "图存到哪里"}),
         ("--quick", {"action": "store_true", "help": "大文件只用 60 MB"})]
MODEL = ["--n_layer", "2", "--d_model", "64", "--n_head", "4", "--hidden", "64", "--other_experts", "4"]


def write_corpus(path, megabytes, rows):
    """Built-in texts over and over, each with a number of its own, until the file has its size."""
    size = number = 0
    with open(path, "w", encoding="utf-8") as f:
        while size < megabytes * 1_000_000:
            for text in rows:
                size += f.write(json.dumps({"text": f"第{number}篇。{text}"}, ensure_ascii=False) + "\n") * 2.6
                number += 1


def anonymous_mb(root):
    """RssAnon of a process and all its descendants, in MB."""
    parents, total = {}, 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
                parents[int(entry.name)] = (int(fields["PPid"]), int(fields.get("RssAnon", "0").split()[0]))
            except (OSError, ValueError):
                continue
    for pid, (_, anon) in parents.items():
        at = pid
        while at in parents and at != root:
            at = parents[at][0]
        total += anon if at == root else 0
    return total / 1000


def train(data, folder, steps):
    """-> peak MB, median tokens per second."""
    command = [sys.executable, str(ROOT / "train_agent/pre_train.py"), "--json_data_path", str(data), "--out_dir",
               str(folder),
               "--log_dir", str(folder / "logs"), "--log_file", str(folder / "log.txt"), "--max_steps", str(steps),
               "--eval_share", "0",
               "--vocab_data_path", str(data), "--resume", "none", *MODEL]
    with open(folder / "err.txt", "w") as errors:
        process, peak = subprocess.Popen(command, stderr=errors, stdout=errors), 0.0
        while process.poll() is None:
            peak = max(peak, anonymous_mb(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit((folder / "err.txt").read_text()[-2000:])
    speed = sorted(read_log(folder / "log.txt")[-1].get("Tok/s"))
    return round(peak, 1), float(speed[len(speed) // 2])


def compare(small_mb, large_mb, steps):
    """-> {"small", "large": {"mb", "peak_anonymous_mb", "tokens_per_s", "seconds"}, "growth_mb", "speed_ratio"}; prints
    a line for each."""
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        rows = [json.loads(line)["text"]
                for line in open(write_demo(Path(temporary) / "demo")["pre"], encoding="utf-8")]
        for name, size in (("small", small_mb), ("large", large_mb)):
            folder = Path(temporary) / name
            folder.mkdir()
            write_corpus(folder / "data.jsonl", size, rows)
            start = time.time()
            peak, speed = train(folder / "data.jsonl", folder, steps)
            results[name] = {"mb": round((folder / "data.jsonl").stat().st_size / 1e6), "peak_anonymous_mb": peak,
                             "tokens_per_s": speed,
                             "seconds": round(time.time() - start, 1)}
            print(
                f"{results[name]['mb']:>6} MB 数据：峰值匿名内存 {peak:.0f} MB，{speed:.0f} token/s，共 {results[name]['seconds']} "
                f"秒")
    results["growth_mb"] = round(results["large"]["peak_anonymous_mb"] - results["small"]["peak_anonymous_mb"], 1)
    results["speed_ratio"] = round(results["large"]["tokens_per_s"] / results["small"]["tokens_per_s"], 3)
    return results


def main(argv=None):
    _, command = parse(argv, "数据变大，内存会不会变大？", extra=EXTRA)
    results = compare(command.small_mb, 60 if command.quick else command.large_mb, 40 if command.quick else 200)
    if command.png:
        sizes = {f"{results[n]['mb']} MB": results[n] for n in ("small", "large")}
        Path(command.png).parent.mkdir(parents=True, exist_ok=True)
        draw(
            command.png, [
                ("峰值匿名内存，MB", "peak anonymous memory, MB", {k: v["peak_anonymous_mb"] for k, v in sizes.items()}),
                           ("词元/秒", "tokens/s", {k: v["tokens_per_s"] for k, v in sizes.items()})])
    print(json.dumps(results))


if __name__ == "__main__":
    guarded(main)

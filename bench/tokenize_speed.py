"""How fast does text become tokens, and how soon does training start?

    python bench/tokenize_speed.py [--quick] [--data text.jsonl] [--png out/tokenize_speed.png]

For words (jieba) and for characters: vocabulary, MB/s of the workers once they run (their start is not counted; data
are read once, because workers remember the words they have seen; only data too small for that are repeated), the whole
building of the cache, and a second start that only opens it. Then, with a warm cache, a fresh process: imports, data
and model ready, first step done. The last line of stdout is one JSON object.
"""

import json
import os
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

from bench.measure import SHAPE, draw, table
from tools.cli import guarded, parse
from tools.demo_data import write_demo
from tools.vocab import Vocab
from train_agent.trainers.data import token_cache

EXTRA = [("--data", {"metavar": "文件", "help": "JSONL 文本，默认内置预训练数据"}),
         ("--png", {"metavar": "文件", "default": str(ROOT / "out/tokenize_speed.png"), "help": "图存到哪里"}),
         ("--quick", {"action": "store_true", "help": "数据小就快，没有别的区别"})]
# What a fresh process does before its first step is done; it prints the moments on one line.
START = """
import sys, time
sys.path.insert(0, sys.argv[1])
import json
from train_agent.trainers.pre_training import build_stage
from train_agent.trainers.trying.dry_loop import Rehearsal
moments = [time.time()]
stage = build_stage(json.loads(sys.argv[2]))
moments.append(time.time())
with Rehearsal(stage) as loop:
    loop.optimize(next(loop.groups()), 1)
moments.append(time.time())
print(json.dumps(moments))
"""


def steady(vocab, path):
    """MB/s of the encoding workers after the first results have come. They are as many as the machine has cores."""
    blocks = list(token_cache._blocks(path))
    with token_cache._encoder(vocab, "pretraining", None, 1 << 40) as encode:
        skipped, done, since = 2 * encode.cores, 0, None
        blocks *= -(-4 * skipped // (3 * len(blocks)))
        for number, result in enumerate(encode(blocks)):
            if number == skipped:
                since = time.perf_counter()
            elif since:
                done += result["bytes"]
    return done / 1e6 / (time.perf_counter() - since)


def timed(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def measure(kind, path, folder):
    """-> figures of one kind of token. The cache stays in `folder`/`kind`."""
    cache_dir = Path(folder) / kind
    cache_dir.mkdir()
    vocab, building = timed(
        lambda: Vocab([path], cache_dir / "vocab.json", SHAPE["vocab_size"], kind, cache_dir=cache_dir))
    speed = steady(vocab, path)
    cache, whole = timed(lambda: token_cache.open_cache([path], vocab, "pretraining", cache_dir))
    again, second = timed(lambda: token_cache.open_cache([path], vocab, "pretraining", cache_dir))
    assert len(again) == len(cache)
    return {"mb_per_s": round(speed, 2), "vocab_seconds": round(building, 2), "cache_seconds": round(whole, 2),
            "second_start_seconds": round(second, 3), "tokens": len(cache.tokens)}


def first_step(manager, path, folder):
    """Seconds from the start of a fresh process on a warm cache, at shape S: {"imports", "ready", "first_step"}."""
    here = str(Path(folder) / "jieba")
    options = {**manager.stage("pre"), **SHAPE, "json_data_path": [path], "vocab_data_path": [path], "cache_dir": here,
               "out_dir": here,
               "log_dir": here, "log_file": here + "/log.txt", "vocab_trg_path": here + "/vocab.json",
               "pretraining_model_path": None,
               "init_from": None, "max_len": 512, "batch_size": 8, "resume": "none"}
    start = time.time()
    run = subprocess.run([sys.executable, "-c", START, str(ROOT), json.dumps(options)], capture_output=True, text=True,
                         check=True)
    return dict(
        zip(("imports", "ready", "first_step"), (round(t - start, 2) for t in json.loads(run.stdout.splitlines()[-1]))))


def main(argv=None):
    manager, command = parse(argv, "分词多快，热缓存时多久开始训练", stage="pre", extra=EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(command.data or write_demo(Path(folder) / "demo")["pre"]).resolve())
        size = os.path.getsize(path) / 1e6
        found = {kind: measure(kind, path, folder) for kind in ("jieba", "char")}
        first_step(manager, path, folder)                              # fills the system's file cache
        started = first_step(manager, path, folder)
    names = ("mb_per_s", "vocab_seconds", "cache_seconds", "second_start_seconds")
    print(*table(["", "MB/秒（稳定）", "词表 秒", "建缓存 秒", "再次打开 秒"], [[k, *(v[n] for n in names)] for k, v in found.items()]),
          sep="\n")
    print(
        f"{size:.1f} MB 数据，{os.cpu_count()} 核；热缓存的新进程：导入 {started['imports']} 秒，就绪 {started['ready']} 秒，第一步完成 "
        f"{started['first_step']} 秒")
    Path(command.png).parent.mkdir(parents=True, exist_ok=True)
    draw(command.png, [("分词，MB/秒", "tokenising, MB/s", {k: v["mb_per_s"] for k, v in found.items()}),
                       ("热缓存启动，秒", "start on a warm cache, seconds", started)])
    print(json.dumps({"mb": round(size, 1), "cores": os.cpu_count(), **found, "start": started}))
    return 0


if __name__ == "__main__":
    guarded(main)

"""How long does the data check-up of a large file take, and how much memory?

    python bench/check_up.py --data text.jsonl [--mb 1000] [--quick]

The file is made of the sentences of `--data`, shuffled into rows of their usual lengths; one row in twenty is repeated
word by word and one in twenty with a changed sentence, so that both searches for duplicates have work. The last line of
stdout is one JSON object. Linux only: memory is read from /proc.
"""

import json
import random
import re
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

from bench.data_memory import anonymous_mb
from tools.cli import guarded, parse
from tools.formats import BadLines, read_rows, row_texts

REPEATED = 0.05
EXTRA = [("--data", {"nargs": "+", "required": True, "metavar": "文件", "help": "句子从这些数据来"}),
         ("--mb", {"type": int, "default": 1000, "help": "做多大的文件（MB）"}),
         ("--quick", {"action": "store_true", "help": "只做 30 MB"})]


def write_large(path, sources, megabytes):
    """-> (rows, rows repeated word by word, rows repeated with a change)"""
    rng, pool, lengths = random.Random(0), [], []
    for row in read_rows(sources, bad=BadLines()):
        parts = re.findall(r"[^。！？\n]+[。！？\n]*", "\n".join(row_texts(row)))
        pool += parts
        lengths.append(max(1, len(parts)))
    rows = same = near = size = 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1_000_000:
            parts = rng.choices(pool, k=rng.choice(lengths))
            copies = [parts]
            # one sentence of forty changed: a Jaccard above 0.9
            if len(parts) > 40 and rng.random() < 2 * REPEATED:
                changed = [*parts]
                changed[rng.randrange(len(parts))] = rng.choice(pool)
                copies.append(changed)
                near += 1
            elif rng.random() < REPEATED:
                copies.append(parts)
                same += 1
            for one in copies:
                line = json.dumps({"text": "".join(one)}, ensure_ascii=False) + "\n"
                size += len(line.encode())
                file.write(line)
                rows += 1
    return rows, same, near


def resident_mb(root):
    """All resident pages of a process and its children, shared ones counted each time: an upper bound."""
    out = subprocess.run(["ps", "-o", "rss=", "--ppid", str(root), "-p", str(root)], capture_output=True,
                         text=True).stdout
    return sum(map(int, out.split())) / 1000


def main(argv=None):
    _, options = parse(argv, "数据体检要多久、多少内存？", extra=EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "large.jsonl", Path(folder) / "out.txt"
        rows, same, near = write_large(path, options.data, 30 if options.quick else options.mb)
        print(f"{path.stat().st_size / 1e6:.0f} MB，{rows} 行，其中 {same} 行重复，{near} 行改了一句", flush=True)
        begin, anonymous, resident = time.perf_counter(), 0.0, 0.0
        with open(out, "w") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "tools/check_data.py"), str(path), "--json", str(out) + ".json"],
                                       stdout=file, stderr=subprocess.STDOUT, cwd=folder)
            while process.poll() is None:
                anonymous, resident = max(anonymous, anonymous_mb(process.pid)), max(resident, resident_mb(process.pid))
                time.sleep(1.0)
        seconds = time.perf_counter() - begin
        print(out.read_text(encoding="utf-8")[-1500:])
        found = json.loads(Path(str(out) + ".json").read_text(encoding="utf-8"))
        faults = {kind: entry["count"] for kind, entry in found["faults"].items()}
        print(
            json.dumps(
                {"mb": round(path.stat().st_size / 1e6), "rows": rows, "seconds": round(seconds, 1),
                 "peak_anonymous_mb": round(anonymous),
                          "peak_resident_mb": round(resident), "planted": {"duplicate": same, "near_duplicate": near},
                          "faults": faults}))


if __name__ == "__main__":
    guarded(main)

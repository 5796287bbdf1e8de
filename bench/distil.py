"""Is a teacher worth its time? A student half as wide, the same CPU seconds with and without one, built-in world.

    python bench/distil.py --teacher out/TinySeek_SFT_final.pkl --cpu_seconds 180 --seeds 3 --out out/distil
    (any key of the stage sft, e.g. --kd_temperature 2 --kd_alpha 0.5)

Each seed pre-trains one student from nothing, without a teacher (--pre_seconds; 0 = none); both students of the seed
learn the dialogues (--rows of them) from there; the schedules end with the time. The teacher's reading of the data is
timed apart: it is done once for all students. Scores: held-out nats per target, and the exam's share of exact answers;
their differences are taken within the seeds. Prints a table; the last line is JSON. Run again to go on where it was
stopped.
"""

import json
import math
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from bench.measure import table
from bench.quality_per_minute import BudgetLoop, commit
from chat_agent.evaluation.scoring import exact_scores
from chat_agent.load import load
from tools.checkpoint import final_name, load_chain
from tools.cli import guarded, parse
from tools.config_manager import ConfigManager
from tools.demo_data import demo_home, write_demo
from tools.reading.lines import iter_lines
from tools.saving.atomic import read_json, write_bytes, write_json
from tools.vocab import Vocab
from train_agent.trainers.pre_training import build_stage as build_pre
from train_agent.trainers.sft_training import build_stage

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}      # two-sided, by the number of seeds
HALVED = ("d_model", "n_head", "d_c", "hidden")
ARMS = {"plain": "没有老师", "taught": "有老师"}
EXTRA = [("--cpu_seconds", {"type": float, "default": 180.0, "metavar": "秒", "help": "每个学生学对话多少 CPU 秒（180）"}),
         ("--pre_seconds", {"type": float, "default": 120.0, "metavar": "秒", "help": "先预训练多少 CPU 秒（120）"}),
         ("--seeds", {"type": int, "default": 3, "metavar": "数", "help": "几个种子（3）"}),
         ("--rows", {"type": int, "metavar": "数", "help": "只用对话的前几行（默认全部）"}),
         ("--every", {"type": int, "default": 1, "metavar": "N", "help": "考题只考每 N 题中的一题"}),
         ("--out", {"default": str(ROOT / "out/distil"), "metavar": "文件夹", "help": "检查点和结果的文件夹"}),
         ("--quick", {"action": "store_true", "help": "几秒钟，只看能不能跑"})]


def settings(command, folder, name, seed, shape, stage, **keys):
    given = {key: value for key, value in command.overrides.items() if key != "teacher" and not key.startswith("kd_")}
    return ConfigManager(overrides={
        **shape, "out_dir": str(folder / name), "cache_dir": str(folder.parent / "cache"),
        "vocab_trg_path": str(folder.parent / "vocab.json"), "log_dir": str(folder / name / "logs"),
        "log_file": str(folder / name / "log.txt"), "pretraining_model_path": "none", "threads": 1, "seed": seed,
        "max_epochs": 1000, "eval_steps": None, "save_steps": None, "resume": "none", **given, **keys},
        preset="tiny", stage=stage).stage(stage)


def pre_trained(command, folder, seed, shape, demo):
    """Path of the model from which both students of a seed begin; "none" where they begin from nothing."""
    made = folder / f"pre_{seed}" / final_name("Pre")
    seconds = 4.0 if command.quick else command.pre_seconds
    if seconds and not made.exists():
        options = settings(command, folder, made.parent.name, seed, shape, "pre", json_data_path=str(demo["pre"]))
        BudgetLoop(build_pre(options), seconds, time.process_time, 1, None).run()
    return str(made) if seconds else "none"


def run(command, folder, arm, seed, shape, demo):
    """Train one student -> its scores; those of an earlier start are kept."""
    done = folder / f"{arm}_{seed}.json"
    if done.exists():
        return read_json(done)
    kept = {key: value for key, value in command.overrides.items() if key == "teacher" or key.startswith("kd_")}
    options = settings(command, folder, done.stem, seed, shape, "sft", json_data_path=str(demo["sft"]),
                       **{"pretraining_model_path": pre_trained(command, folder, seed, shape, demo)},
                       **(kept if arm == "taught" else {}))
    start = time.process_time()
    stage = build_stage(options)
    prepared = time.process_time() - start
    loop = BudgetLoop(stage, 8.0 if command.quick else command.cpu_seconds, time.process_time, 1, None)
    metrics = loop.run()
    model, vocab, _ = load(Path(options["out_dir"]) / final_name("SFT"), "cpu")
    exam = exact_scores(model, vocab, str(demo["eval"]), 40 if command.quick else command.every)
    found = {"nats": metrics["eval_ce_1"], "exact": exam["overall"], "steps": loop.step, "tokens": loop.tokens,
             "seconds": loop.spent_all, "prepared": prepared, "parameters": sum(p.numel() for p in model.parameters())}
    write_json(done, found)
    return found


def interval(values):
    """Mean and half the width of the 95 % interval of a mean, by Student's t."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), half


def main(argv=None):
    _, command = parse(argv, "有老师和没有老师的学生，同样的时间学到多好？", stage="sft", extra=EXTRA)
    taught = load_chain(command.overrides["teacher"])[0]
    teacher = taught["config"]
    shape = {name: teacher[name] for name in ("n_layer", "d_r", "other_experts", "shared_experts", "keep", "use_moe")}
    shape |= {name: teacher[name] // 2 for name in HALVED} | {"token_kind": "char"}
    folder = Path(command.out).resolve() / ("quick" if command.quick else f"{command.cpu_seconds:g}s")
    folder.mkdir(parents=True, exist_ok=True)
    Vocab.from_state(taught["vocab"]).save(folder.parent / "vocab.json")
    demo = write_demo(demo_home(str(folder.parent)))
    if command.quick or command.rows:
        few = folder.parent / f"rows_{200 if command.quick else command.rows}.jsonl"
        lines = [raw for _, raw in islice(iter_lines(demo["sft"]), int(few.stem[5:]))]
        write_bytes(few, b"\n".join(lines) + b"\n")
        demo = {**demo, "sft": few}
    seeds = range(1 if command.quick else command.seeds)
    by_seed = [{arm: run(command, folder, arm, seed, shape, demo) for arm in ARMS} for seed in seeds]
    found = {arm: [one[arm] for one in by_seed] for arm in ARMS}
    rows = []
    for arm, title in ARMS.items():
        scores = [interval([one[name] for one in found[arm]]) for name in ("nats", "exact")]
        rows.append([title, *(f"{mean:.4f} ± {half:.4f}" for mean, half in scores),
                     f"{statistics.mean(one['steps'] for one in found[arm]):.0f}"])
    gains = [[one["taught"][name] - one["plain"][name] for one in by_seed] for name in ("nats", "exact")]
    rows.append(["差", *("{:+.4f} ± {:.4f}".format(*interval(gain)) for gain in gains), ""])
    print(*table(["", "留出损失（nats）", "考题全对", "步数"], rows), sep="\n")
    read = max(one["prepared"] for one in found["taught"])
    print(json.dumps({"arms": found, "teacher_seconds": read, "commit": commit(), "keys": command.overrides},
                     ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)

"""How fast does it learn? Tokens per second of whole training steps, and how close they come to what the machine can
multiply.

    python bench/train_speed.py [--quick] [--data dialogue.jsonl] [--png out/train_speed.png] [any configuration key]

Three models at shape S (8 x 512 tokens): with experts, its dense twin, and the yardstick of bench/yardstick.py; then
the useful (real) tokens of packed dialogues against rows padded to 512. All of them take turns in one process, and
every step is a step of the real loop: forward, backward, clipping, optimizer. FLOPs: 6 per active matrix parameter and
token, and causal attention. The last line of stdout is one JSON object.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch

from bench import yardstick
from bench.measure import LENGTH, ROWS, SHAPE, by_turns, draw, flops, medians, peak, seconds, table
from model import ModelConfig, TinySeek
from model.segments import Segments
from tools.cli import guarded, parse
from tools.demo_data import write_demo
from train_agent.trainers.hardware import machine
from train_agent.trainers.dataset import Batch
from train_agent.trainers.trying.dry_loop import Rehearsal
from train_agent.trainers.sft_training import build_stage

EXTRA = [("--data", {"nargs": "+", "metavar": "文件", "help": "对话数据（JSONL），用来测有用的词元，默认内置对话"}),
         ("--rounds", {"type": int, "default": 7, "metavar": "数", "help": "轮流测几遍，取中位数（7）"}),
         ("--png", {"metavar": "文件", "default": str(ROOT / "out/train_speed.png"), "help": "图存到哪里"}),
         ("--quick", {"action": "store_true", "help": "每样只测两遍，一分钟以内"})]


def stage_options(manager, folder, data):
    """The stage `sft` at shape S on `data`, with nothing left behind outside `folder`."""
    folder, data = Path(folder), [str(Path(d).resolve()) for d in data]
    typed = manager.stage("sft")
    return {**typed, **SHAPE, "json_data_path": data, "vocab_data_path": data, "out_dir": str(folder),
            "cache_dir": str(folder),
            "log_dir": str(folder), "log_file": str(folder / "log.txt"), "vocab_trg_path": str(folder / "vocab.json"),
            "pretraining_model_path": None, "init_from": None, "general_data_path": None, "eval_share": 0.02,
            "max_len": LENGTH,
            "batch_size": ROWS, "accumulation_steps": 1, "resume": "none", "name": None}


def random_batch(vocab, rows=ROWS, length=LENGTH):
    """Rows of random ids, each one document and all of it targets."""
    ids = torch.randint(16, vocab, (rows, length))
    places = torch.arange(length).expand(rows, length).contiguous()
    labels = [torch.nn.functional.pad(ids[:, k:], (0, k), value=-100) for k in (1, 2)]
    return Batch(ids, places, torch.ones_like(ids, dtype=torch.bool), *labels, Segments.dense(rows, length),
                 rows * length,
                 *(int((t >= 0).sum()) for t in labels))


def with_model(stage, **shape):
    """The stage with a fresh model of shape S and these changes."""
    model = TinySeek(ModelConfig.from_dict({**SHAPE, **shape, "vocab_size": stage.model.config.vocab_size}))
    return replace(stage, model=model)


PEAKS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = 4        # of ours in a turn


def repeat(work):
    """Seconds of one step in a row of them; the first one, which finds what the last turn's model left in every cache,
    is not counted."""
    work()
    return seconds(lambda: [work() for _ in range(STEPS)]) / STEPS


def run(manager, data, rounds, folder):
    """-> everything measured, a dict."""
    stage = build_stage(stage_options(manager, folder, data))
    batch, own = random_batch(stage.model.config.vocab_size), []
    padded = [yardstick.padded(stage.train.cache, stage.train.documents, LENGTH, i * ROWS, ROWS) for i in range(64)]
    batches = {"yardstick": [(batch.ids, batch.labels_1, batch.labels_2, batch.valid)],
               "padded": [rows for rows, _ in padded]}

    with Rehearsal(with_model(stage)) as moe, Rehearsal(with_model(stage, use_moe=False)) as dense, \
            Rehearsal(with_model(stage)) as packed, yardstick.Yardstick(moe.model.config, batches, folder) as judge:
        groups = packed.groups()

        def packed_step():
            group = next(groups)
            own.append(sum(b.tokens for b in group))
            packed.optimize(group, 1)

        turns = {"moe": lambda: repeat(lambda: moe.optimize([batch], 1)),
                 "dense": lambda: repeat(lambda: dense.optimize([batch], 1)),
                 "packed": lambda: repeat(packed_step),
                 **{name: lambda name=name: judge.steps(name, 2)[-1] for name in batches},
                 **{name: lambda dtype=dtype: peak(dtype) for name, dtype in PEAKS.items()}}
        took = by_turns(rounds, turns)
        peaks = {name: took.pop(name) for name in PEAKS}
        phases = breakdown(moe, batch)
        work = {name: flops(loop.model, ROWS * LENGTH, LENGTH)
                for name, loop in (("moe", moe), ("dense", dense))}
    useful = {"packed": sum(own) / len(own), "padded": sum(real for _, real in padded) / len(padded)}
    return {"shape": {**SHAPE, "vocab_size": stage.model.config.vocab_size}, "threads": torch.get_num_threads(),
            "precision": moe.precision, "optimizer": stage.options["optimizer"], **figures(took, work, useful, peaks),
            "phases_ms": phases}


def figures(took, work, useful, peaks):
    """Seconds of a step, FLOPs of a step, useful tokens of a step, FLOP/s of the machine -> what is reported."""
    tokens, best = ROWS * LENGTH, peaks["bfloat16"]
    real = {name: useful[name] / took[name] for name in useful}
    return {"tokens_per_s": round(tokens / took["moe"], 1), "dense_tokens_per_s": round(tokens / took["dense"], 1),
            "yardstick_tokens_per_s": round(tokens / took["yardstick"], 1),
            "ratio_to_yardstick": round(took["yardstick"] / took["moe"], 2),
            "dense_ratio_to_yardstick": round(took["yardstick"] / took["dense"], 2),
            "peak_share": round(work["moe"] / took["moe"] / best, 4),
            "dense_peak_share": round(work["dense"] / took["dense"] / best, 4),
            "yardstick_peak_share": round(work["moe"] / took["yardstick"] / peaks["float32"], 4),
            "useful_tokens_per_s": round(real["packed"], 1), "yardstick_useful_tokens_per_s": round(real["padded"], 1),
            "useful_ratio": round(real["packed"] / real["padded"], 1),
            "packed_share": round(useful["packed"] / tokens, 4),
            "padded_share": round(useful["padded"] / tokens, 4),
            "peak_gflops": {k: round(v / 1e9) for k, v in peaks.items()},
            "step_ms": {name: round(1000 * value, 1) for name, value in took.items()}}


def breakdown(loop, batch, rounds=5):
    """Milliseconds of the forward pass, the backward pass, and all the rest of a step (clipping, optimizer,
    zeroing)."""
    totals = {"targets_1": batch.targets_1, "targets_2": batch.targets_2, "tokens": batch.tokens}

    def forward():
        with machine.autocast(loop.device, loop.precision):
            return loop.stage.loss(loop.wrapped, batch, totals)[0]

    def both():
        forward().backward()

    took = medians(rounds, forward=forward, both=both, step=lambda: loop.optimize([batch], 1))
    return {"forward": round(1000 * took["forward"], 1), "backward": round(1000 * (took["both"] - took["forward"]), 1),
            "rest": round(1000 * (took["step"] - took["both"]), 1)}


def show(result, png):
    ms, share = result["step_ms"], "{:.1%}".format
    rows = [
        ["专家（S）", f"{ms['moe']:.0f}", f"{result['tokens_per_s']:,.0f}", share(result["peak_share"]),
         f"{result['ratio_to_yardstick']:.1f}"],
            ["稠密", f"{ms['dense']:.0f}", f"{result['dense_tokens_per_s']:,.0f}", share(result["dense_peak_share"]),
             f"{result['dense_ratio_to_yardstick']:.1f}"],
            ["对照（朴素写法，float32）", f"{ms['yardstick']:.0f}", f"{result['yardstick_tokens_per_s']:,.0f}",
             share(result["yardstick_peak_share"]), "1"],
            ["对话，有用词元", f"{ms['packed']:.0f}", f"{result['useful_tokens_per_s']:,.0f}", "",
             f"{result['useful_ratio']:.1f}"],
            ["对照的有用词元（补齐到 512）", f"{ms['padded']:.0f}", f"{result['yardstick_useful_tokens_per_s']:,.0f}", "", "1"]]
    print(*table(["", "毫秒/步", "词元/秒", "占矩阵乘峰值", "倍"], rows), sep="\n")
    peaks, phases = result["peak_gflops"], result["phases_ms"]
    print(
        f"矩阵乘峰值：float32 {peaks['float32']}，bfloat16 {peaks['bfloat16']} GFLOP/s（对照按 float32 算）；有用词元占 "
        f"{result['packed_share']:.1%}，"
          f"补齐时占 {result['padded_share']:.1%}；一步：前向 {phases['forward']:.0f} + 反向 {phases['backward']:.0f} + 其余 "
          f"{phases['rest']:.0f} 毫秒")
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    draw(
        png, [
            (
                "词元/秒", "tokens/s", {"MoE": result["tokens_per_s"], "dense": result["dense_tokens_per_s"],
                                     "plain": result["yardstick_tokens_per_s"]}),
               ("占矩阵乘峰值 %", "% of matrix-product peak",
                {"MoE": 100 * result["peak_share"], "dense": 100 * result["dense_peak_share"],
                                                        "plain": 100 * result["yardstick_peak_share"]}),
               ("有用词元/秒", "useful tokens/s",
                {"packed": result["useful_tokens_per_s"], "padded": result["yardstick_useful_tokens_per_s"]})])


def main(argv=None):
    manager, command = parse(argv, "训练速度：每秒多少词元，离矩阵乘的极限多远", extra=EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        data = command.data or [str(write_demo(Path(folder) / "demo")["sft"])]
        result = run(manager, data, 1 if command.quick else command.rounds, folder)
    show(result, command.png)
    print(json.dumps(result, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    guarded(main)

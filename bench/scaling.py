"""What does more cost? Steps at shape S with more experts, longer rows, a wider model, and more data.

    python bench/scaling.py [--quick] [--data dialogue.jsonl] [--large_mb 200] [--png out/scaling.png]

Everything compared takes turns in one process: 8 to 64 routed experts at the same keep; rows of 512 to 4,096 at the
same tokens per step, filled with dialogues and with one document each; widths of 128 to 512 as shares of the
matrix-product peak. The data size is bench/data_memory.py in processes of its own. The last line of stdout is one JSON
object.
"""

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch

from bench import data_memory
from bench.measure import LENGTH, ROWS, SHAPE, draw, flops, medians, peak, table
from bench.train_speed import random_batch, stage_options, with_model
from tools.cli import guarded, parse
from tools.demo_data import write_demo
from train_agent.trainers.hardware import machine
from train_agent.trainers.dataset import PackedData, Position
from train_agent.trainers.trying.dry_loop import Rehearsal
from train_agent.trainers.sft_training import build_stage

EXTRA = [("--data", {"nargs": "+", "metavar": "文件", "help": "对话数据（JSONL），默认内置对话"}),
         (
             "--parts", {"nargs": "+", "choices": ("experts", "length", "width", "data"),
                         "default": ["experts", "length", "width", "data"],
                      "help": "只测这几样"}),
         ("--rounds", {"type": int, "default": 7, "metavar": "数", "help": "轮流测几遍，取中位数（7）"}),
         ("--large_mb", {"type": int, "default": 200, "metavar": "数", "help": "大数据文件的大小（MB）"}),
         ("--png", {"metavar": "文件", "default": str(ROOT / "out/scaling.png"), "help": "图存到哪里"}),
         ("--quick", {"action": "store_true", "help": "每样两个点，一分钟以内，不测数据大小"})]
TOKENS = ROWS * LENGTH
WARM_UP = 4


def forward_backward(loop, batch):
    totals = {"targets_1": batch.targets_1, "targets_2": batch.targets_2, "tokens": batch.tokens}
    with machine.autocast(loop.device, loop.precision):
        loss, _ = loop.stage.loss(loop.wrapped, batch, totals)
    loss.backward()
    for optimizer in loop.optimizers:
        optimizer.zero_grad(set_to_none=True)


def experts(stage, numbers, rounds):
    """{experts: milliseconds of forward + backward, and of a whole step}"""
    batch = random_batch(stage.model.config.vocab_size)
    with ExitStack() as stack:
        loops = {n: stack.enter_context(Rehearsal(with_model(stage, other_experts=n))) for n in numbers}
        passes = medians(rounds, WARM_UP,
                         **{str(n): (lambda loop=loop: forward_backward(loop, batch)) for n, loop in loops.items()})
        steps = medians(rounds, WARM_UP,
                        **{str(n): (lambda loop=loop: loop.optimize([batch], 1)) for n, loop in loops.items()})
    return {n: {"forward_backward_ms": round(1000 * passes[str(n)], 1), "step_ms": round(1000 * steps[str(n)], 1)}
            for n in numbers}


def length(stage, widths, rounds):
    """{row length: tokens per second of packed dialogues, and of rows that are one document each}, the same tokens per
    step."""
    works, real = {}, {}
    with Rehearsal(with_model(stage)) as loop:
        for width in widths:
            options = {**stage.options, "max_len": width, "batch_size": TOKENS // width}
            data = PackedData(stage.train.cache, stage.train.documents, options, truncate=True)
            groups = endless(data)
            whole = random_batch(stage.model.config.vocab_size, TOKENS // width, width)
            real[f"packed {width}"], real[f"one {width}"] = [], [TOKENS]

            def packed(groups=groups, seen=real[f"packed {width}"]):
                group = next(groups)
                seen.append(sum(b.tokens for b in group))
                loop.optimize(group, 1)

            works[f"packed {width}"], works[f"one {width}"] = packed, lambda whole=whole: loop.optimize([whole], 1)
        took = medians(rounds, WARM_UP, **works)
    speed = {name: sum(real[name]) / len(real[name]) / seconds for name, seconds in took.items()}
    return {
        width: {"packed_tokens_per_s": round(speed[f"packed {width}"], 1),
                "document_tokens_per_s": round(speed[f"one {width}"], 1)}
            for width in widths}


def endless(data):
    while True:
        for positions, _, _ in data.groups(Position(), 1):
            yield data[positions]


def width(stage, sizes, rounds):
    """{d_model: tokens per second, share of the bfloat16 peak}; heads of 32, experts and latents grow along."""
    batch, best = random_batch(stage.model.config.vocab_size), peak(torch.bfloat16)
    with ExitStack() as stack:
        loops = {d: stack.enter_context(Rehearsal(with_model(stage, d_model=d, n_head=d // 32, d_c=d // 4, hidden=d)))
                 for d in sizes}
        took = medians(rounds, WARM_UP,
                       **{str(d): (lambda loop=loop: loop.optimize([batch], 1)) for d, loop in loops.items()})
        work = {d: flops(loop.model, TOKENS, LENGTH) for d, loop in loops.items()}
    return {d: {"tokens_per_s": round(TOKENS / took[str(d)], 1), "peak_share": round(work[d] / took[str(d)] / best, 4)}
            for d in sizes}


def ratios(found):
    """The figures that compare the largest with the smallest, or 64 experts with 16."""
    out = {}
    if "experts" in found:
        few, many = (found["experts"][n] for n in (16, 64))
        out["experts_forward_backward"] = round(many["forward_backward_ms"] / few["forward_backward_ms"], 3)
        out["experts_step"] = round(many["step_ms"] / few["step_ms"], 3)
    if "length" in found:
        short, long = (found["length"][n] for n in (512, 4096))
        out["packed_4096"] = round(long["packed_tokens_per_s"] / short["packed_tokens_per_s"], 3)
        out["document_4096"] = round(long["document_tokens_per_s"] / short["document_tokens_per_s"], 3)
    return out


TITLES = {"experts": ("毫秒（专家数）", "ms against routed experts"), "length": ("词元/秒（行长）", "tokens/s against row length"),
          "width": ("词元/秒（宽度）", "tokens/s against width")}


def show(found, png):
    panels = []
    for part, title in TITLES.items():
        if part in found:
            names = list(next(iter(found[part].values())))
            print(*table([{"experts": "专家数", "length": "行长", "width": "宽度"}[part], *names],
                         [[n, *(f"{v:,}" for v in row.values())] for n, row in found[part].items()]), "", sep="\n")
            panels.append(
                (
                    *title, {name: [(n, row[name]) for n, row in found[part].items()] for name in names
                             if name != "peak_share"}))
    if panels:
        Path(png).parent.mkdir(parents=True, exist_ok=True)
        draw(png, panels)


def main(argv=None):
    manager, command = parse(argv, "专家更多、行更长、模型更宽、数据更大，各要付出多少", extra=EXTRA)
    quick, rounds = command.quick, 2 if command.quick else command.rounds
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = command.data or [str(write_demo(Path(folder) / "demo")["sft"])]
        stage = build_stage(stage_options(manager, folder, data))
        if "experts" in command.parts:
            found["experts"] = experts(stage, (16, 64) if quick else (8, 16, 32, 64), rounds)
        if "length" in command.parts:
            found["length"] = length(stage, (512, 4096) if quick else (512, 1024, 2048, 4096), rounds)
        if "width" in command.parts and not quick:
            found["width"] = width(stage, (128, 256, 512), rounds)
    show(found, command.png)
    if "data" in command.parts and not quick:
        found["data"] = data_memory.compare(20, command.large_mb, steps=100)
    print(json.dumps({"shape": SHAPE, "threads": torch.get_num_threads(), **found, **ratios(found)}))
    return 0


if __name__ == "__main__":
    guarded(main)

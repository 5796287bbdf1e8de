"""Writing replies, compiled parts and memory on this device."""

import tempfile

import torch

from bench.gpu.common import DEVICE, asked, seconds, skipped, so_far
from bench.gpu.speed import rehearsal
from bench.measure import SHAPE
from model import ModelConfig, TinySeek
from model.generate import generate_replies, generate_reply
from train_agent.trainers.hardware import compiling
from train_agent.trainers.preflight import preflight
from train_agent.trainers.trying.find_batch import find_batch

STREAMS = (1, 64)


def writing(quick):
    torch.manual_seed(0)
    model = TinySeek(ModelConfig.from_dict(SHAPE)).eval().requires_grad_(False).to(DEVICE)
    tokens, found = 16 if quick else 128, {}
    for streams in STREAMS[:1] if quick else STREAMS:
        prompts = [torch.randint(16, SHAPE["vocab_size"], (32,)).tolist() for _ in range(streams)]
        how = {"guard": False, "stop_ids": (), "prepared": {}}
        work = (lambda: generate_reply(model, prompts[0], tokens, speculate=False, **how)) if streams == 1 else (
            lambda: generate_replies(model, prompts, tokens, **how))
        work()
        found[f"streams_{streams}_tokens_per_s"] = round(streams * tokens / seconds(work), 1)
        so_far(**found)
    return found


def compiled(folder, choice, quick):
    """Milliseconds of a step, after the steps that compile."""
    loop, batch, rows, length = rehearsal(folder, "fast", quick, compile=choice)
    with loop:
        warm = seconds(lambda: loop.optimize([batch], 1), 2 if quick else 4)
        return {"warm_up_s": round(warm * (2 if quick else 4), 1),
                "step_ms": round(1000 * seconds(lambda: loop.optimize([batch], 1), 2 if quick else 10), 2)}


def compiling_pays(quick):
    """Steps of `fast` with compile no and yes; what `auto` chooses for a long run."""
    if not compiling.has_compiler(DEVICE):
        skipped("no compiler for torch.compile here")
    if quick:
        return {"auto_compiles": compiling.pays(DEVICE, 10 ** 6)}
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for choice in ("no", "yes"):
            found[choice] = compiled(folder, choice, quick)
            so_far(**found)
    return {**found, "auto_compiles": compiling.pays(DEVICE, 10 ** 6)}


def memory(quick):
    """What the preflight plans with against what the device says it took; the largest batch that fits."""
    with tempfile.TemporaryDirectory() as folder:
        loop, *_ = rehearsal(folder, "default", quick, **({"max_len": 32, "batch_size": 2} if quick else {}))
        said = preflight(loop.stage, 1.0, say=None)["memory"]
        found = {"planned_mib": round(said["needed"] / 2 ** 20, 1)}
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with loop:
                for group, _ in zip(loop.groups(), range(3)):
                    loop.optimize(group, 1)
            found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2 ** 20, 1)
            found["reserved_mib"] = round(torch.cuda.max_memory_reserved() / 2 ** 20, 1)
        so_far(**found)
        if quick:
            return found
        batch = find_batch(loop.stage, say=None)
    return {**found, "largest_batch": batch["batch_size"], "fastest_batch": batch["fastest"]}


if __name__ == "__main__":
    asked({"writing": writing, "compiling": compiling_pays, "memory": memory})

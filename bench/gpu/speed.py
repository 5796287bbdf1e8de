"""Tokens per second of whole training steps on this device, and which share of its measured bfloat16 product peak."""

import sys
import tempfile
from pathlib import Path

import torch

from bench.gpu.common import DEVICE, asked, seconds, skipped, so_far, wait
from bench.measure import flops
from bench.train_speed import random_batch
from model import ModelConfig, TinySeek
from model.kernels.ngram_head import EVERY_ORDER
from tools.config_manager import ConfigManager
from train_agent.trainers.build_stage import builder
from train_agent.trainers.trying.dry_loop import Rehearsal

ROOT = Path(__file__).resolve().parents[2]
DENSE = {"use_moe": False, "use_fc2": False, "attention": "gqa", "tie_embedding": True}
# name: (preset, other keys, rows, row length, goal: share of the peak)
MODELS = {
    "default": (None, {}, 64, 256, None), "tiny": ("tiny", {}, 64, 256, None), "fast": ("fast", {}, 32, 512, None),
    "medium": ("medium", {}, 32, 512, None),
    "dense_16x2048": (None, {**DENSE, "n_layer": 16, "n_head": 16, "d_model": 2048, "dense_hidden": 5632,
                             "optimizer": "adamw"}, 8, 1024, 0.45),
    "experts_1024": (None, {"n_layer": 8, "n_head": 16, "d_model": 1024, "d_c": 256, "d_r": 32, "hidden": 512,
                            "other_experts": 32, "shared_experts": 2, "keep": 6, "use_fc2": False,
                            "optimizer": "adamw"}, 16, 1024, 0.30),
}
TOY = {"dense_16x2048": {"n_layer": 2, "d_model": 64, "n_head": 2, "dense_hidden": 128},
       "experts_1024": {"n_layer": 2, "d_model": 64, "n_head": 2, "d_c": 32, "d_r": 16, "hidden": 32,
                        "other_experts": 4, "keep": 2}}


def peak(quick):
    """The best FLOP/s of a bfloat16 product here."""
    sizes = (512,) if quick else (4096, 8192)
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        a @ b
        best = max(best, 2 * size ** 3 / seconds(lambda: a @ b, 3 if quick else 20))
    return best


def rehearsal(folder, name, quick, **more):
    """A loop with a fresh model of MODELS[name], and one random batch of its shape."""
    preset, keys, rows, length, _ = MODELS[name]
    keys = {**keys, **(TOY.get(name, {}) if quick else {}), **more}
    rows, length = (2, 64) if quick else (rows, length)
    folder = Path(folder)
    data = str(ROOT / "data/hand_text.jsonl")
    places = {"out_dir": str(folder), "log_dir": str(folder), "log_file": str(folder / "log.txt"),
              "cache_dir": str(folder / "cache"), "json_data_path": data, "vocab_data_path": data, "eval_share": 0.0,
              "vocab_trg_path": str(folder / f"{name}.json")}
    options = ConfigManager(ROOT / "model_config.json",
                            {**places, "device": str(DEVICE), "mixed_precision": "bf16", "max_len": length,
                             "pair_start": 0, **keys}, preset, "pre").stage("pre")
    stage = builder("pre")(options)
    # the few words of the data at hand would make small heads
    words = stage.model.config.vocab_size if quick else options["vocab_size"]
    stage.model = TinySeek(ModelConfig.from_dict({**stage.model.config.to_dict(), "vocab_size": words}))
    batch = random_batch(words, rows, length)
    if stage.model.config.counted:
        stage.model.fc1.count(batch.ids.flatten(), batch.positions.flatten())
        batch.left_out = torch.full_like(batch.ids, EVERY_ORDER, dtype=torch.int8)
    return Rehearsal(stage), batch, rows, length


def one(folder, name, quick, best):
    rounds = 1 if quick else 10
    loop, batch, rows, length = rehearsal(folder, name, quick)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with loop:
        step = lambda: loop.optimize([batch], 1)                                           # noqa: E731
        for _ in range(1 if quick else 3):
            step()
        took = seconds(step, rounds)
        work = flops(loop.model, rows * length, length)
    found = {"tokens_per_s": round(rows * length / took), "peak_share": round(work / took / best, 4),
             "step_ms": round(1000 * took, 2), "parameters": sum(p.numel() for p in loop.model.parameters())}
    if DEVICE.type == "cuda":
        found["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2 ** 20)
        del loop, batch, step
        torch.cuda.empty_cache()
    return found


def speed(quick):
    best, found, wrong = peak(quick), {}, {}
    so_far(peak_tflops=round(best / 1e12, 2))
    with tempfile.TemporaryDirectory() as folder:
        for name, (*_, goal) in MODELS.items():
            try:
                found[name] = {**one(folder, name, quick, best), "goal": goal}
            except (RuntimeError, ValueError) as error:
                wrong[name] = f"{type(error).__name__} {str(error)[:300]}"
            so_far(**found)
    return {"peak_tflops": round(best / 1e12, 2), **found, "failed": wrong}


def profile(quick):
    """Where one step of the default model spends its time; the picture opens in chrome://tracing or Perfetto."""
    from torch.profiler import ProfilerActivity
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (DEVICE.type == "cuda")]
    target = ROOT / "out/gpu_profile.json"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        loop, batch, *_ = rehearsal(folder, "default", quick)
        with loop:
            loop.optimize([batch], 1)
            with torch.profiler.profile(activities=kinds) as taken:
                loop.optimize([batch], 1)
                wait()
        taken.export_chrome_trace(str(target))
    own = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    rows = sorted(taken.key_averages(), key=lambda row: -getattr(row, own, 0))[:12]
    return {"trace": str(target.relative_to(ROOT)),
            "top_us": {row.key[:80]: round(getattr(row, own, 0)) for row in rows}}


def minimind(quick):
    """MiniMind's own step at the size of our preset `minimind`; its code has to lie in .gpu_packages/minimind."""
    there = ROOT / ".gpu_packages/minimind"
    if not (there / "model/model_minimind.py").is_file():
        skipped("MiniMind's code is not in .gpu_packages/minimind")
    sys.path.insert(0, str(there))
    sys.modules.pop("model", None)                           # ours has the same name; the part ends after this
    for name in [name for name in sys.modules if name.startswith("model.")]:
        sys.modules.pop(name)
    try:
        from model.model_minimind import MiniMindConfig, MiniMindForCausalLM
    except ImportError as error:
        skipped(f"MiniMind needs a package that is not here: {error}")
    rows, length = (2, 64) if quick else (64, 256)
    model = MiniMindForCausalLM(MiniMindConfig(hidden_size=256, num_hidden_layers=4, vocab_size=6400)).to(DEVICE)
    rate = torch.optim.AdamW(model.parameters(), lr=5e-4)
    ids = torch.randint(16, 6400, (rows, length), device=DEVICE)

    def step():
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            logits = model(ids).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate.step()
        rate.zero_grad(set_to_none=True)
    step()
    return {"tokens_per_s": round(rows * length / seconds(step, 1 if quick else 10)),
            "parameters": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    asked({"speed": speed, "profile": profile, "minimind": minimind})

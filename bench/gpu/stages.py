"""Every stage trains a few steps at toy size, on the CPU and on this device: the same losses in float32."""

import tempfile
from pathlib import Path

import toy
from bench.gpu.common import DEVICE, asked, run, so_far

STEPS, NEAR = 6, 2e-3            # relative distance of the losses after a few steps of Adam
QUIET = {"logging_steps": None, "save_best_model": False, "max_steps": STEPS, "max_epochs": 20}
OWN = {"pre": {}, "sft": {}, "lora": {"rank": 2}, "prefix": {"prefix_len": 3},
       "memory": {"memory_tokens": 12, "memory_chapters": 4, "memory_topk": 2}, "dpo": {"batch_size": 4},
       "gate": {"gate_hidden": 16, "batch_size": 8}}


def pairs():
    one, other = toy.THINGS[:2]
    return [{"prompt": f"{one}呢？{i}", "chosen": f"{one}，{one}。", "rejected": f"{other}不见了。"} for i in range(20)]


def options_of(stage, folder, device, base):
    rows = {"pre": toy.text_rows(40), "dpo": pairs()}.get(stage) or toy.dialogue_rows(40)
    start = {} if stage in ("pre", "sft") else {"experts": [str(base), str(base)]} if stage == "gate" else {
        "pretraining_model_path": str(base), "replay_data_path": str(folder / "none.jsonl")}
    return toy.toy_options(folder, toy.toy_vocab(), stage, rows, device=device, name=f"{stage}_{device.split(':')[0]}",
                           **{**QUIET, **start, **OWN[stage]})


def losses(stage, folder, device, base):
    loop = toy.train(options_of(stage, folder, device, base), stage)
    assert loop.exit == 0, loop.exit
    return [step["loss"] for step in loop.history]


def same_losses(stage, folder, base):
    here, there = losses(stage, folder, str(DEVICE), base), losses(stage, folder, "cpu", base)
    off = max(abs(a - b) / abs(b) for a, b in zip(here, there, strict=True))
    assert len(here) == STEPS and off <= NEAR, (off, here, there)
    so_far(**{stage: off})
    return off


def stages(quick):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        losses("sft", folder, "cpu", None)
        base = folder / "out/sft_cpu/TinySeek_SFT_final.pkl"
        wanted = ("pre", "lora", "dpo") if quick else OWN
        found, wrong = run({stage: lambda stage=stage: same_losses(stage, folder, base) for stage in wanted})
    return {**found, "failed": wrong}


if __name__ == "__main__":
    asked({"stages": stages})

"""FSDP meets every stage: on two gloo ranks each trains as DDP does, in float64, partial steps included."""
import sys

import pytest
import torch

import ranks
import toy

HERE = torch.distributed.is_available() and sys.platform.startswith("linux")
pytestmark = pytest.mark.skipif(not HERE, reason="gloo on Linux")

PAIRS = [{"prompt": f"{thing}呢？", "chosen": "很好看。", "rejected": "不见了。"} for thing in toy.THINGS * 4]
MEMORY = dict(memory_tokens=8, memory_chapters=2, memory_topk=1)
STAGES = {
    "lora": ("lora", dict(rank=2, lora_targets=["attention", "experts", "router", "heads"])),
    "lora that forgets nothing": ("lora", dict(rank=2, lora_targets=["attention", "heads"], forget_penalty=20.0,
                                               eval_share=0.1)),
    "prefix": ("prefix", dict(prefix_len=4)),
    "role": ("prefix", dict(prefix_kind="role")),
    "memory with lora": ("memory", dict(rank=2, **MEMORY)),
    "memory and base": ("memory", dict(base_model_lr=1e-4, **MEMORY)),
    "dpo": ("dpo", dict(rows=PAIRS)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vocab):
    """(name of STAGES, how it is distributed) -> [history of each rank]"""
    folder = tmp_path_factory.mktemp("sharded")
    toy.train(toy.toy_options(folder, vocab, "sft", 40, name="base", logging_steps=None), "sft")
    general = toy.write_rows(folder / "general.jsonl", toy.dialogue_rows(50, 9))
    usual = dict(rows=40, max_steps=6, max_epochs=3, resume="none", n_of_samples=7, accumulation_steps=2,
                 replay_data_path=str(general), pretraining_model_path=str(folder / "out/base/TinySeek_SFT_final.pkl"))
    jobs = {}
    for name, (stage, keys) in STAGES.items():
        keys = {**usual, **keys}
        if stage == "dpo":
            del keys["replay_data_path"]
        for way in ("ddp", "fsdp"):
            folder_name = f"{way} {name}".replace(" ", "_")
            options = toy.toy_options(folder, vocab, stage, name=folder_name, distributed=way, **keys)
            jobs[name, way] = {"options": options, "stage": stage}
    results = ranks.finish(folder, ranks.start(folder, list(jobs.values()), TINYSEEK_TIMEOUT=120))
    return {key: [rank[i]["history"] for rank in results] for i, key in enumerate(jobs)}


@pytest.mark.parametrize("name", STAGES)
def test_X2_every_stage_trains_sharded_as_it_does_whole(runs, name):
    ours, theirs = (runs[name, way] for way in ("fsdp", "ddp"))
    assert len(theirs[0]) == 6 and theirs[0][0]["loss"] != theirs[0][-1]["loss"]
    for rank in ours:
        for h, g in zip(rank, theirs[0], strict=True):
            assert [h[k] for k in ("loss", "grad_norm")] == pytest.approx([g[k] for k in ("loss", "grad_norm")],
                abs=1e-7)

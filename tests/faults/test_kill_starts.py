"""Every stage started from a file of its own kind in its own folder, killed (SIGKILL) or interrupted (Ctrl-C) at random
moments and
started again with the same words until it is done: the bits of the run that was left alone."""
import os
import shutil
import signal
import time

import pytest

import toy
from file_faults import quiet, report, seeded
from test_dpo import pair_rows
from tools.checkpoint import load_chain, read_pair

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="需要 fork 和 SIGKILL")]
LABELS = {"pre": "Pre", "sft": "SFT", "dpo": "DPO", "lora": "Lora", "prefix": "Prefix", "memory": "Memory", "rl": "RL"}
OWN = {"lora": {"rank": 2}, "prefix": {"prefix_len": 3},
       "memory": {"memory_tokens": 12, "memory_chapters": 4, "rank": 0},
       "rl": {"reward": "length", "reward_length": 4, "max_new_tokens": 8, "group_size": 4}}
MOST, EARLIER = 300, 5     # starts of one run at most; the seed of the run before


def argv(world, stage, out, **keys):
    more = dict(OWN.get(stage, {}), replay_data_path=world.folder / "none.jsonl", save_total_limit=3, save_steps=2)
    if stage not in ("pre", "sft"):
        keys = {"pretraining_model_path": world.folder / "out/base/TinySeek_SFT_final.pkl", **keys}
    if stage == "dpo":
        more["router_noise"] = 0.0
    return world.argv(stage, out, **{**more, **keys})


def ending(out, stage):
    payload, state = read_pair(out / "out" / f"TinySeek_{LABELS[stage]}_final.pkl")
    for key in ("seconds", "run_id", "fingerprint"):
        state.pop(key)
    return payload["weights"], state


def has_ended(out, stage):
    with quiet(out / "out", LABELS[stage]) as folder:
        newest = folder.entries()[-1:]
        return bool(newest) and newest[0]["kind"] == "final" and folder.ended() and folder.load(
            newest[0])[0]["run"]["seed"] != EARLIER


def until_done(zygote, words, stage, out, said, seconds, rng):
    """-> (kills, interruptions)"""
    counts = {signal.SIGKILL: 0, signal.SIGINT: 0}
    for _ in range(MOST):
        zygote.start(stage, words, said)
        status = zygote.wait(rng.uniform(0, seconds * rng.choice((0.3, 0.7, 1.2))))
        if status is None:
            number = rng.choice(tuple(counts))
            os.kill(zygote.pid, number)
            status = zygote.wait()
            counts[number] += status != 0
        if status == 0:
            return counts[signal.SIGKILL], counts[signal.SIGINT]
        assert status in (-9, 143), said.read_text(errors="replace")[-3000:]
        if has_ended(out, stage):                           # killed on its way out: its words now mean a second round
            return counts[signal.SIGKILL], counts[signal.SIGINT]
    raise AssertionError("the run does not get on")


@pytest.mark.parametrize("key", ["init_from", "pretraining_model_path"])
@pytest.mark.parametrize("stage", LABELS)
def test_C3_started_from_its_own_kind_of_file_and_killed_at_random(zygote, world, ram_path, stage, key):
    rng = seeded(stage + key)
    toy.write_rows(world.folder / f"{stage}.jsonl", toy.text_rows(60, 7) if stage == "pre" else pair_rows(40)
                   if stage == "dpo" else toy.dialogue_rows(60, 7))
    earlier = ram_path / "earlier"
    assert zygote.run(stage, argv(world, stage, earlier, seed=EARLIER, max_epochs=1),
                      ram_path / "said") == 0, (ram_path / "said").read_text()[-3000:]
    kills = interruptions = runs = 0
    while kills < 6 or interruptions < 4:
        ends = rng.choice([p.name for p in (earlier / "out").glob("TinySeek_*.pkl")])
        whole, cut = ram_path / f"whole{runs}", ram_path / f"cut{runs}"
        for place in (whole, cut):
            shutil.copytree(earlier, place, ignore=shutil.ignore_patterns("cache"))
        begin = time.monotonic()
        assert zygote.run(stage, argv(world, stage, whole, **{key: whole / "out" / ends}), ram_path / "said") == 0
        more = until_done(zygote, argv(world, stage, cut, **{key: cut / "out" / ends}), stage, cut, ram_path / "said",
                          time.monotonic() - begin, rng)
        assert toy.same_tensors(ending(cut, stage), ending(whole, stage)), ends
        load_chain(cut / "out" / f"TinySeek_{LABELS[stage]}_final.pkl")
        kills, interruptions, runs = kills + more[0], interruptions + more[1], runs + 1
    report(stage=stage, key=key, runs=runs, kills=kills, interruptions=interruptions, different=0)

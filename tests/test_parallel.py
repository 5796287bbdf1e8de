"""Several processes are one: DDP and FSDP2 on two gloo ranks against one process, to the last digits of float64."""
import math
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import ranks
import toy
from tools.checkpoint import read_checkpoint, read_pair
from train_agent.trainers import parallel
from train_agent.trainers.dataset import Position

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or not sys.platform.startswith("linux"),
                                reason="gloo on Linux")

# 60 rows in chunks of 13: every chunk's last group is partial, so now and then a rank has no micro-batch.
USUAL = dict(rows=60, n_of_samples=13, max_epochs=9, save_steps=None, resume="none")
CUT = dict(USUAL, resume="auto", optimizer="adam", eval_share=0.1, eval_steps=4, max_steps=12)


class World:
    """A folder with toy data; `options(name, ...)`, `one(options)` runs in this process what ranks run together."""

    def __init__(self, folder):
        self.folder = folder

    def options(self, name, **keys):
        keys = {**USUAL, "name": name, "max_steps": 8, **keys}
        return toy.toy_options(self.folder, toy.toy_vocab(), **keys)

    def one(self, options, **interruption):
        stage = toy.build_stage(options)
        stage.model.double()
        loop = toy.ToyLoop(stage, **interruption)
        try:
            loop.run()
        except SystemExit as error:
            assert error.code == 143
        return loop


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def runs(world):
    """name -> [what rank 0 did, what rank 1 did]; all in one pair of processes."""
    fsdp = {"distributed": "fsdp"}
    zero2 = {**fsdp, "fsdp_sharding": "SHARD_GRAD_OP"}
    twice = {"mixed_precision": "bf16", "accumulation_steps": 2}
    jobs = {
        "ddp": {"options": world.options("ddp", max_steps=50, optimizer="sgd", init_lr=0.05), "gradients": 0},
        "ddp sgd": {"options": world.options("ddp_sgd", optimizer="sgd"), "gradients": 3},
        "full sgd": {"options": world.options("full_sgd", optimizer="sgd", **fsdp), "gradients": 3},
        "zero2 sgd": {"options": world.options("zero2_sgd", optimizer="sgd", **zero2), "gradients": 3},
        "ddp adam": {"options": world.options("ddp_adam")},
        "full adam": {"options": world.options("full_adam", **fsdp)},
        "full muon": {"options": world.options("full_muon", optimizer="muon", max_steps=3, **fsdp)},
        "no shard": {"options": world.options("no_shard", max_steps=2, distributed="fsdp", fsdp_sharding="NO_SHARD")},
        "checkpointing": {
            "options": world.options("checkpointing", gradient_checkpointing=True, optimizer="sgd", **fsdp)},
        "accumulated": {"options": world.options("accumulated", accumulation_steps=3)},
        "accumulated full": {"options": world.options("accumulated_full", accumulation_steps=3, **fsdp)},
        "nan": {"options": world.options("nan"), "nan_at": (1, 3)},
        "nan full": {"options": world.options("nan_full", **fsdp), "nan_at": (1, 3)},
        "fp16 full": {"options": world.options("fp16_full", mixed_precision="fp16", **fsdp), "nan_at": (1, 3),
                      "float64": False},
        "bf16 full": {"options": world.options("bf16_full", mixed_precision="bf16", **fsdp), "float64": False},
        "bf16 ddp": {"options": world.options("bf16_ddp", mixed_precision="bf16"), "float64": False},
        "bf16 zero2": {"options": world.options("bf16_zero2", gradient_checkpointing=True, **twice, **zero2),
                       "float64": False},
        "bf16 ddp 2": {"options": world.options("bf16_ddp_2", **twice), "float64": False},
        "fp16 ddp": {"options": world.options("fp16_ddp", mixed_precision="fp16"), "nan_at": (1, 3), "float64": False},
        "sigmoid": {"options": world.options("sigmoid", router="sigmoid", router_bias_rate=0.02)},
        "sigmoid full": {"options": world.options("sigmoid_full", router="sigmoid", router_bias_rate=0.02, **fsdp)},
        "dropout": {"options": world.options("dropout", dropout=0.1)},
        "dropout cut": {"options": world.options("dropout_cut", dropout=0.1, resume="auto"), "stop_after": 3},
        "dropout resumed": {"options": world.options("dropout_cut", dropout=0.1, resume="auto")},
        "first part": {"options": world.options("cut", **CUT), "stop_after": 3},
        "first part full": {"options": world.options("cut_full", **CUT, **fsdp), "stop_after": 3},
        "uneven": {"options": world.options("uneven", distributed="fsdp"), "uneven": True},
        "errors": {"errors": True},
    }
    results = ranks.launch(world.folder, list(jobs.values()))
    return {name: [rank[i] for rank in results] for i, name in enumerate(jobs)}


def largest(a, b):
    """Largest difference of two dicts of tensors."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def curve(history, *names):
    return [h[n] for h in history for n in names or ("loss", "grad_norm")]


def assert_same_curve(a, b, tolerance=1e-9):
    assert len(a) == len(b) > 0 and max(abs(x - y) for x, y in zip(curve(a), curve(b))) < tolerance


# ---- DDP ----

def test_X1_two_ranks_are_one_process_with_both_micro_batches(world, runs):
    """50 steps, partial groups included, 1e-9 in float64."""
    loop = world.one(world.options("alone", max_steps=50, optimizer="sgd", init_lr=0.05, accumulation_steps=2))
    first, second = runs["ddp"]
    nothing = [h for h in second["history"] if h["places"] == [None]]
    assert nothing and len(first["history"]) == 50, "now and then a rank has nothing to do"
    assert_same_curve(first["history"], loop.history)
    assert curve(first["history"]) == curve(second["history"])
    assert largest(first["weights"], {n: p.detach() for n, p in loop.model.named_parameters()}) < 1e-9
    assert toy.same_tensors(first["weights"], second["weights"])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_X1_every_row_once_per_epoch_at_any_world_size(world, count):
    stage = toy.build_stage(world.options("rows", max_epochs=2, accumulation_steps=2))
    walks = [list(stage.train.groups(Position(), 2, rank, count)) for rank in range(count)]
    assert len({len(walk) for walk in walks}) == 1, "all ranks take the same steps"
    assert len(walks[0]) == stage.train.steps(2, count)
    places = [p for walk in walks for positions, _, _ in walk for p in positions if p.batch >= 0]
    assert len(places) == len(set(places))
    for epoch in range(2):
        rows = [r for p in places if p.epoch == epoch for r in stage.train.source_rows(p)]
        assert sorted(set(rows)) == list(range(60))


def test_X1_gradients_travel_with_the_last_micro_batch_only(runs):
    for name, single in (("accumulated", "ddp adam"), ("accumulated full", "full adam")):
        assert len(runs[name][0]["history"]) == 8, "beyond the first chunk's end, where one rank has a micro-batch less"
        once = set(runs[single][0]["calls"])
        assert len(once) == 1 and set(runs[name][0]["calls"]) == once != {0}
        passes = [[len(h["places"]) for h in rank["history"]] for rank in runs[name]]
        assert passes[0] == passes[1] and len(set(passes[0])) > 1
    sent, alone = runs["accumulated"][0]["sent"], runs["ddp adam"][0]["sent"]
    assert max(sent) < 1.05 * max(alone)


def test_X1_what_is_not_finite_on_one_rank_skips_the_step_on_all(world, runs):
    for name in ("nan", "nan full", "fp16 full"):
        first, second = runs[name]
        norms = curve(first["history"], "grad_norm")
        assert norms[2] != norms[2] and norms[-1] == norms[-1] and toy.same_tensors(first["weights"], second["weights"])
        skipped = toy.events({"log_dir": newest_log(world, f"{name.replace(' ', '_')}")}, "skipped")
        stage = toy.build_stage(world.options("rows"))
        spoiled = [stage.train.source_rows(p) for h in second["history"] if h["step"] == 3 for p in h["places"]]
        named = next(row["rows"] for row in skipped if row["step"] == 3)
        assert set(sum(spoiled, [])) <= set(named), "rows of the other rank are named too"
        assert len(skipped) == 1 or name == "fp16 full", "a scaler also skips while it looks for its scale"


def newest_log(world, name):
    """A folder that holds only the log of run `name` (toy runs share logs/)."""
    import json
    for path in (world.folder / "logs").glob("*.jsonl"):
        if json.loads(path.read_text().splitlines()[0]).get("config.name") == name:
            target = world.folder / f"log_{name}"
            target.mkdir(exist_ok=True)
            (target / path.name).write_text(path.read_text())
            return target
    raise AssertionError(name)


def test_X1_rank_0_alone_writes(world, runs):
    lines = (world.folder / "log.txt").read_text(encoding="utf-8").splitlines()
    total = sum(len(pair[0]["history"]) for pair in runs.values() if "history" in pair[0])
    assert sum(line.startswith("Epoch ") for line in lines) >= total
    starts = [line for line in lines if line.startswith("# TinySeek") and "ranks: 2" in line]
    assert len(starts) == len(
        {line.split("run: ")[1].split(" ")[0] + line.split("start: ")[-1][:19] if "start: " in line else line
         for line in starts})
    assert len(list((world.folder / "out" / "ddp").glob("TinySeek_*.pkl"))) == 1


def test_C3_dropout_of_every_rank_goes_on_where_it_stopped(runs):
    whole, resumed = runs["dropout"][0], runs["dropout resumed"][0]
    assert runs["dropout cut"][0]["exit"] == 143 and resumed["history"][0]["step"] == 4
    assert curve(resumed["history"]) == curve(whole["history"])[6:]
    assert toy.same_tensors(resumed["weights"], whole["weights"])
    a, b = (h["loss"] for h in whole["history"][:2])
    assert a != b


# ---- FSDP2 ----

def test_X2_fsdp_gradients_before_clipping_are_those_of_ddp(runs):
    """Adam would hide a constant factor: gloo's average has been a sum."""
    for name in ("full sgd", "zero2 sgd"):
        for ours, theirs in zip(runs[name][0]["gradients"], runs["ddp sgd"][0]["gradients"], strict=True):
            assert largest(ours, theirs) < 1e-9 and max(float(g.abs().max()) for g in theirs.values()) > 1e-3


@pytest.mark.parametrize("name, same", [("full sgd", "ddp sgd"), ("zero2 sgd", "ddp sgd"), ("full adam", "ddp adam"),
                                        ("checkpointing", "ddp sgd"), ("accumulated full", "accumulated")])
def test_X2_fsdp_trains_as_ddp_does(runs, name, same):
    first, second = runs[name]
    assert_same_curve(first["history"], runs[same][0]["history"])
    assert largest(first["weights"], runs[same][0]["weights"]) < 1e-9 and toy.same_tensors(first["weights"],
        second["weights"])


def test_X2_each_rank_holds_half(runs):
    for ours, theirs in (("full adam", "ddp adam"), ("full sgd", "ddp sgd"), ("zero2 sgd", "ddp sgd")):
        for rank in runs[ours]:
            assert rank["shards"] <= 0.6 * runs[theirs][0]["shards"]
    assert runs["no shard"][0]["shards"] == runs["ddp adam"][0]["shards"], "NO_SHARD is DDP"
    assert curve(runs["no shard"][0]["history"]) == curve(runs["ddp adam"][0]["history"])[:4]


@pytest.mark.parametrize("name, same, tolerance", [("bf16 full", "bf16 ddp", 1e-5), ("bf16 zero2", "bf16 ddp 2", 1e-5),
                                                   ("fp16 full", "fp16 ddp", 1e-3)])
def test_X2_low_precision_is_the_model_that_ddp_trains(runs, name, same, tolerance):
    """Residual stream, norms and routers in float32, the same experts chosen; only the blocks' matrices travel in
    less."""
    ours, theirs = runs[name][0], runs[same][0]
    for h, g in zip(ours["history"], theirs["history"], strict=True):
        if math.isfinite(g["grad_norm"]):
            assert [h["loss"], h["grad_norm"]] == pytest.approx([g["loss"], g["grad_norm"]], rel=tolerance)
    for part, dtypes in theirs["dtypes"].items():
        matrices = part.startswith("blocks.") and not part.endswith(("norm", "router"))
        assert matrices or ours["dtypes"][part] == dtypes, part
    for part in ("embed", "blocks.1", "norm", "blocks.1.mlp.router", "blocks.0.attention_norm"):
        assert "torch.float32" in ours["dtypes"][part][-1]


def test_X1_X2_balanced_routers_agree_on_all_ranks(world, runs):
    alone = world.one(world.options("sigmoid_alone", router="sigmoid", router_bias_rate=0.02, accumulation_steps=2))
    for name in ("sigmoid", "sigmoid full"):
        for rank in runs[name]:
            assert_same_curve(rank["history"], alone.history)
            assert toy.same_tensors(rank["buffers"], dict(alone.model.named_buffers()))
    assert alone.model.blocks[0].mlp.router.bias.any()


def test_X2_a_sharded_model_is_never_whole_on_a_device(runs):
    whole = runs["ddp adam"][0]["moved"]
    assert whole == [("", 1)] and runs["full adam"][0]["moved"][:1] == [("blocks.0", 1)]
    assert "" not in [name for name, share in runs["full adam"][0]["moved"] if share > 0.5]


def test_X2_muon_and_finite_numbers_under_fsdp(runs):
    assert all(torch.isfinite(p).all() for name in ("fp16 full", "bf16 full")
               for p in runs[name][0]["weights"].values())
    losses = curve(runs["full muon"][0]["history"], "loss")
    assert losses[-1] < losses[0] and toy.same_tensors(runs["full muon"][0]["weights"], runs["full muon"][1]["weights"])


def test_X2_its_checkpoint_is_a_plain_one(world, runs):
    folder = world.folder / "out"
    ours, theirs = (read_pair(folder / name / "TinySeek_Pre_final.pkl") for name in ("full_adam", "ddp_adam"))
    assert ours[0]["weights"].keys() == theirs[0]["weights"].keys() and largest(ours[0]["weights"],
        theirs[0]["weights"]) < 1e-9
    for a, b in zip(ours[1]["optimizers"], theirs[1]["optimizers"], strict=True):
        for number, entry in b["state"].items():
            assert largest({k: v for k, v in a["state"][number].items()}, entry) < 1e-9


# ---- other numbers of ranks, errors, deaths ----

@pytest.fixture(scope="module")
def second_launch(world, runs):
    """One process takes up what two have begun; then a rank is killed; then two go on with all of it."""
    for name in ("cut", "cut_full"):
        loop = world.one(world.options(name, **{**CUT, "accumulation_steps": 2, "allow_change": True}), stop_after=7)
        assert [h["step"] for h in loop.history] == [4, 5, 6, 7]
        runs[name + " alone"] = [{"history": loop.history}]
    killed = kill_one(world)
    jobs = {name: {"options": world.options(name, **{**CUT, **more, "allow_change": True})}
            for name, more in (("cut", {}), ("cut_full", {"distributed": "fsdp"}))}
    jobs["killed"] = {"options": world.options("killed", **KILLED)}
    results = ranks.launch(world.folder, list(jobs.values()))
    return {**{name: [rank[i] for rank in results] for i, name in enumerate(jobs)}, "how": killed}


KILLED = dict(resume="auto", max_steps=40, save_steps=2)


def kill_one(world):
    """Start two ranks, kill one after its first checkpoint -> (exit code of the other, what it said, seconds it
    took)."""
    job = {"options": world.options("killed", **KILLED), "slow": 0.3}
    processes = ranks.start(world.folder, [job], TINYSEEK_TIMEOUT=60)
    try:
        until = time.time() + 300
        while not (world.folder / "out" / "killed" / "manifest_Pre.json").exists():
            assert time.time() < until and all(p.poll() is None for p in processes), ranks.said(world.folder, 2)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGKILL)
        start = time.time()
        code = processes[0].wait(240)
        return code, (world.folder / "said_0.txt").read_text(errors="replace"), time.time() - start
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_X1_two_one_two_ranks_continue_the_curve(world, runs, second_launch):
    """2 ranks, saved, 1 rank with twice the accumulation, saved, 2 ranks: as one run, every row once, 1e-9 in
    float64."""
    whole = world.one(world.options("whole", **{**CUT, "accumulation_steps": 2}))
    for name, first in (("cut", "first part"), ("cut_full", "first part full")):
        parts = [runs[first][0]["history"], runs[name + " alone"][0]["history"], second_launch[name][0]["history"]]
        assert [len(p) for p in parts] == [3, 4, 5]
        assert_same_curve(sum(parts, []), whole.history)
        seen = [
            p for part in (*(r["history"] for r in runs[first]), parts[1], *(r["history"] for r in second_launch[name]))
                for h in part for p in h["places"] if p]
        assert sorted(seen) == sorted(p for h in whole.history for p in h["places"])
        ours, theirs = (read_checkpoint(world.folder / "out" / n / "TinySeek_Pre_final.pkl")["weights"]
                        for n in (name, "whole"))
        assert largest(ours, theirs) < 1e-9
    assert "ranks 2 → 1" in (world.folder / "log.txt").read_text(encoding="utf-8"), "said to be not bit-exact"


def test_X1_a_killed_rank_ends_the_other_and_a_restart_goes_on(world, second_launch):
    code, said, seconds = second_launch["how"]
    assert code == parallel.LOST and seconds < 200, f"{code} {said[-2000:]}"
    last = said.strip().splitlines()[-1]
    assert last.startswith("错误：") and "另一个训练进程" in last and "Traceback" not in said
    again = second_launch["killed"][0]
    assert 1 < again["history"][0]["step"] <= 40
    alone = world.one(world.options("killed_not", **{**KILLED, "accumulation_steps": 2}))
    assert_same_curve(again["history"], alone.history[again["history"][0]["step"] - 1:])


def test_find_batch_stops_on_all_ranks_where_one_has_no_more_memory(runs):
    first, second = (r["found"] for r in runs["uneven"])
    assert first[:3] == second[:3] and 1 <= first[0] < 8 and first[2] == 8


def test_errors_of_one_rank_end_all_and_are_told_once(runs):
    first, second = (r["errors"] for r in runs["errors"])
    assert first == [("UserError", "词表坏了", 4), ("UserError", "先坏", 2), ("UserError", "不同", 4), [0, 1], 7]
    assert second == [("SystemExit", "", 4), ("SystemExit", "", 2), ("SystemExit", "", 4), [0, 1], 7]

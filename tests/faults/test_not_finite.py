"""NaN and infinity in loss, gradient, weight or optimizer state: skipped and named, or stopped with 5; none is ever
saved."""
import json
import math
import os
from pathlib import Path

import pytest
import torch

import ranks
import toy
from file_faults import report, seeded
from tools.checkpoint import read_checkpoint
from tools.errors import UserError
from tools.saving.run_folder import _is_finite
from tools.saving.archive import read_torch

SIZE = dict(rows=20, max_steps=9, batch_size=2, save_steps=1, save_total_limit=None, eval_share=0.2, eval_steps=2,
            logging_steps=1)
WRONG = (math.nan, math.inf, -math.inf)


class Spoiled(toy.ToyLoop):
    """`plan`: {step (from 1): (kind, value)}; done right before or after that step's own work."""

    def __init__(self, stage, plan):
        super().__init__(stage)
        self.plan, real = plan, stage.loss

        def loss(model, batch, totals):
            value, sums = real(model, batch, totals)
            kind, wrong = self.plan.get(self.step + 1, ("", 0)) if model.training else ("", 0)
            if kind == "loss":
                return value * wrong, {**sums, "ce_1": sums["ce_1"] * wrong}
            # the loss is a number, its gradient is too large for fp16
            if kind == "overflow":
                return value * wrong, sums
            if kind == "high loss":
                return value, {**sums, "ce_1": sums["ce_1"] * wrong}
            return value, sums
        stage.loss = loss

    def clip(self):
        kind, wrong = self.plan.get(self.step + 1, ("", 0))
        if kind == "gradient":
            with torch.no_grad():
                self.named[len(self.named) // 2][1].grad.view(-1)[3] = wrong
        return super().clip()

    def optimize(self, group, chunk):
        super().optimize(group, chunk)
        kind, wrong = self.plan.get(self.step, ("", 0))
        if kind == "weight":
            self.named[1][1].data.view(-1)[0] = wrong
        if kind == "optimizer":
            moments = [t for s in self.optimizers[0].state.values() for t in s.values() if isinstance(t, torch.Tensor)
                       and t.ndim]
            moments[self.step % len(moments)].view(-1)[0] = wrong


def saved_files(options):
    folder = Path(options["out_dir"], options["name"] or "")
    return sorted(folder.rglob("TinySeek_*.pkl")) + sorted(folder.rglob("TinySeek_*.state"))


def not_finite(options):
    """Saved files with a number in them that is not finite."""
    return [p.name for p in saved_files(options) if not _is_finite(read_torch(p))]


def run(options, plan, stage="pre"):
    """-> (exit code, the loop)"""
    loop = Spoiled(toy.build_stage(options, stage), plan)
    try:
        loop.run()
    except UserError as error:
        return error.code, loop
    return 0, loop


def inject(make, count):
    """`count` runs, each with one to three spoiled steps; every law is checked for each."""
    rng, codes, saved, spoiled = seeded(count), [], 0, 0
    for number in range(count):
        kind = ("loss", "gradient", "optimizer", "weight")[number % 4]
        first, length = rng.randint(2, 6), rng.choice((1, 1, 2, 3))
        plan = {first + i: (kind, rng.choice(WRONG)) for i in range(length)}
        options = make(**SIZE, optimizer=("adam", "muon")[number // 4 % 2], name=f"run{number}")
        code, loop = run(options, plan)
        assert not_finite(options) == [], (number, plan)
        skipped = toy.events(options, "skipped")
        assert all(e["rows"] for e in skipped)
        if kind in ("loss", "gradient"):
            assert code == (5 if length == 3 else 0), (number, plan)
            assert [e["step"] for e in skipped] == sorted(plan)
            for event in skipped:
                places = loop.history[event["step"] - 1]["places"] if event["step"] <= len(loop.history) else None
                assert places is None or event["rows"] == sorted(
                    {r for p in places for r in loop.stage.train.source_rows(p)})
        else:
            assert code == 5, (number, plan)
        again, _ = run(options, {})                                     # the fault is gone: the run goes on and ends
        assert again == 0 and not_finite(options) == []
        codes.append(code)
        spoiled += len(plan)
        saved += len(saved_files(options))
    report(injections=spoiled, runs=count, stopped_with_5=codes.count(5), skipped=codes.count(0), files_saved=saved,
           not_finite_saved=0)


def test_nothing_that_is_not_finite_is_ever_saved(options):
    inject(options, 8)


@pytest.mark.slow
def test_nothing_that_is_not_finite_is_ever_saved_long(options):
    inject(options, 110)


@pytest.mark.slow
def test_one_rank_of_two(tmp_path, vocab):
    """40 injections in one of two gloo ranks: the step is skipped on both, whose weights stay equal."""
    rng, jobs = seeded("ranks"), []
    for number in range(40):
        own = toy.toy_options(tmp_path, vocab, rows=30, max_steps=6, save_steps=2, name=f"r{number}", resume="none",
                              save_total_limit=None)
        jobs.append({"options": own, "nan_at": (number % 2, rng.randint(1, 6)), "float64": False})
    results = ranks.launch(tmp_path, jobs)
    for number, (job, first, second) in enumerate(zip(jobs, *results)):
        step = job["nan_at"][1]
        assert all(math.isnan(r["history"][step - 1]["grad_norm"]) for r in (first, second)), number
        assert toy.same_tensors(first["weights"], second["weights"]) and not_finite(job["options"]) == []
    skipped = [json.loads(line) for p in (tmp_path / "logs").glob("*.jsonl")
               for line in p.read_text(encoding="utf-8").splitlines() if '"skipped"' in line]
    report(rank_injections=len(jobs), skipped=len(skipped), not_finite_saved=0)
    assert len(skipped) == len(jobs) and all(e["rows"] for e in skipped)


def test_a_scaler_that_still_backs_off_is_patient(options):
    """fp16: from 65536 down to below 1 a skipped step is normal; then three in a row are the end."""
    chosen = options(**{**SIZE, "max_steps": 40}, mixed_precision="fp16", max_epochs=9)
    code, loop = run(chosen, {step: ("overflow", math.inf) for step in range(3, 40)})
    assert code == 5 and not_finite(chosen) == []
    assert len(toy.events(chosen, "skipped")) == 17 + 3                 # 2^16 .. 2^0 while it backs off
    code, _ = run(options(**{**SIZE, "max_steps": 12}, mixed_precision="fp16", name="few"),
                  {s: ("overflow", math.inf) for s in (3, 4, 5, 6)})
    assert code == 0


def test_a_loss_spike_is_logged_with_its_rows(options):
    chosen = options(rows=80, max_steps=30, logging_steps=1, save_steps=None)
    code, loop = run(chosen, {25: ("high loss", 40.0)})
    (event,) = toy.events(chosen, "spike")
    assert code == 0 and event["step"] == 25 and event["loss"] > 6 * loop.history[23]["loss"]
    assert event["rows"] == loop.stage.train.source_rows(loop.history[24]["places"][0])


def test_control_without_the_guards_they_are_saved(options, monkeypatch):
    """Control arm: no look at loss and gradient, no look before a save; the same injections reach the files."""
    monkeypatch.setattr("train_agent.trainers.running.signals_and_guards.FiniteGuard.check",
                        lambda self, finite, scale: True)
    monkeypatch.setattr("tools.saving.run_folder._refuse_non_finite", lambda weights, state: None)
    spoiled = 0
    for number, kind in enumerate(("loss", "gradient", "optimizer", "weight")):
        own = options(**SIZE, name=f"c{number}")
        run(own, {3: (kind, math.nan)})
        spoiled += bool(not_finite(own))
    report(control_injections=4, control_saved=spoiled)
    assert spoiled == 4
    assert os.path.exists(saved_files(own)[0]) and read_checkpoint(saved_files(own)[0])

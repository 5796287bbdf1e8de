"""The loop: steps against a plain implementation, cadences, the log, stopping early."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import toy
from toy import build_stage, checkpoint, events, log_lines, names, run_loop, same_tensors, train
from tools.errors import UserError
from tools.train_log import read_log
from train_agent.trainers import loop as loop_file
from train_agent.trainers.schedules import rate_factor


# ---- one step ----

def plain_gradient(model, documents, width):
    """CE of both heads over one step's documents, each alone, by torch's own cross-entropy."""
    losses, counts = [0.0, 0.0], [0, 0]
    for ids in documents:
        for start in range(0, len(ids) - 1, width):
            piece = ids[start:min(start + width, len(ids) - 1)]
            out = model(piece[None])
            for head, logits in enumerate((out.logits_1, out.logits_2)):
                goal = ids[start + head + 1:start + head + 1 + len(piece)]
                losses[head] = losses[head] + F.cross_entropy(logits[0, :len(goal)], goal, reduction="sum")
                counts[head] += len(goal)
    loss = losses[0] / counts[0] + losses[1] / counts[1]
    return loss, torch.autograd.grad(loss, list(model.parameters()))


def test_O1_O4_O5_L1_steps_are_those_of_a_plain_adam(options):
    """Accumulation 3 on uneven micro-batches; judge: documents alone, Adam and clipping written out. 1e-9 in
    float64."""
    chosen = options(rows=40, alpha=0.0, accumulation_steps=3, batch_size=1, max_norm=0.5, decay=0.9, max_len=128)
    stage = build_stage(chosen)
    stage.model.double()
    judge = toy.TinySeek(stage.model.config).double()
    judge.load_state_dict(stage.model.state_dict())
    loop = run_loop(stage)
    assert len(loop.history) > 3
    parameters = list(judge.parameters())
    m, v = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for t, step in enumerate(loop.history, 1):
        rows = sorted(r for place in step["places"] for r in stage.train.source_rows(place))
        loss, gradient = plain_gradient(judge, [torch.from_numpy(stage.train.cache.document(r)[0]) for r in rows], 128)
        norm = math.sqrt(sum(float(g.pow(2).sum()) for g in gradient))
        assert step["loss"] == pytest.approx(float(loss), rel=1e-9) and step["grad_norm"] == pytest.approx(norm,
            rel=1e-9)
        lr = 5e-3 * 0.9 ** (t - 1)
        assert step["lr"] == pytest.approx(lr)
        with torch.no_grad():
            for p, g, a, b in zip(parameters, gradient, m, v):
                g = g * min(1, 0.5 / (norm + 1e-6))
                a.mul_(0.9).add_(0.1 * g)
                b.mul_(0.95).add_(0.05 * g * g)
                p -= lr * (a / (1 - 0.9 ** t)) / ((b / (1 - 0.95 ** t)).sqrt() + 1e-8)
    for p, q in zip(parameters, stage.model.parameters()):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [30, 33])
def test_O5_small_micro_batches_are_one_big_batch(options, rows):
    """4 x 1 = 1 x 4 rows a step, the last partial group included."""
    weights = []
    for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
        stage = build_stage(
            options(rows=rows, alpha=0.0, batch_size=batch_size, accumulation_steps=accumulation, resume="none"))
        stage.model.double()
        loop = run_loop(stage)
        rows_trained = sum(len(stage.train._plan(p.epoch, p.chunk)[1][p.batch]) for h in loop.history
                           for p in h["places"])
        weights.append((stage.model.state_dict(), rows_trained, len(loop.history)))
    for other in weights[1:]:
        assert other[1:] == weights[0][1:]
        for name, tensor in weights[0][0].items():
            torch.testing.assert_close(other[0][name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("max_norm", [0.01, 0.0])
def test_O4_clipping_and_the_logged_norm(options, max_norm):
    """One SGD step without momentum moves by lr * clipped gradient; the log tells the norm before; 0 = off."""
    stage = build_stage(
        options(optimizer="sgd", beta1=0.0, weight_decay=0.0, init_lr=0.5, min_lr=0.0, max_norm=max_norm, max_steps=1))
    before = {n: p.detach().clone() for n, p in stage.model.named_parameters()}
    loop = run_loop(stage)
    moved = math.sqrt(
        sum(float((p.detach() - before[n]).pow(2).sum()) for n, p in stage.model.named_parameters())) / 0.5
    norm = loop.history[0]["grad_norm"]
    assert norm > 0.1 and moved == pytest.approx(max_norm or norm, rel=1e-3)


def test_S2_warm_up_by_chunks_in_a_run(options):
    chosen = options(rows=40, n_of_samples=8, warmup_index=2, keep_temp_index=3, decay=0.5)
    history = train(chosen).history
    assert [h["chunk"] for h in history] == sorted(h["chunk"] for h in history) and history[-1]["chunk"] == 5
    after = 0
    for h in history:
        held = h["chunk"] <= 3
        assert h["lr"] == pytest.approx(5e-3 * min(1, h["chunk"] / 2) if held else max(5e-3 * 0.5 ** after, 1e-5))
        after += not held


def test_S2_chunks_are_counted_on_through_the_epochs(options):
    """A second epoch is no second beginning: what was warmed up stays warm, and the decay goes on."""
    chosen = options(rows=40, n_of_samples=8, max_epochs=2, warmup_index=2, keep_temp_index=3, decay=0.9)
    history = train(chosen).history
    assert sorted({h["chunk"] for h in history}) == list(range(1, 11))
    later = [h["lr"] for h in history if h["chunk"] > 3]
    assert later == pytest.approx([5e-3 * 0.9 ** i for i in range(len(later))])
    cut = {**chosen, "name": "cut"}
    first, again = train(cut, stop_after=len(history) // 2 + 3), train(cut)
    assert [h["lr"] for h in first.history + again.history] == [h["lr"] for h in history]


@pytest.mark.parametrize("scheduler", ["exponential", "cosine", "linear", "constant"])
def test_S5_every_rule_reaches_the_optimizer(options, scheduler):
    chosen = options(scheduler=scheduler, warmup_steps=3, decay=0.9)
    loop = train(chosen)
    for step, h in enumerate(loop.history):
        assert h["lr"] == pytest.approx(5e-3
                                        * rate_factor(SimpleNamespace(**chosen), step, loop.total_steps, 1,
                                                      max(0, step - 3)))
    assert loop.optimizers[0].param_groups[0]["lr"] == loop.history[-1]["lr"] and loop.history[0]["lr"] < 5e-3


def test_E5_one_batch_overfits_through_the_loop(options):
    chosen = options(rows=4, max_epochs=80, d_model=32, hidden=32, init_lr=1e-2, decay=0.999, batch_size=8)
    history = train(chosen).history
    assert history[-1]["loss"] < 0.05 * history[0]["loss"]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16", "auto"])
def test_P1_P2_every_precision_trains_and_resumes_bit_identically(options, precision):
    """One scaler for all, switched on for fp16 alone; its scale survives the interruption."""
    keys = dict(mixed_precision=precision, dropout=0.1, decay=0.99)
    whole = train(options(name="whole", **keys))
    assert whole.scaler.is_enabled() == (whole.precision == "fp16") and all(p.dtype == torch.float32
        for p in whole.model.parameters())
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    cut = options(name="cut", **keys)
    assert train(cut, stop_after=5).exit == 143
    again = train(cut)
    if precision == "auto":
        again.precision == whole.precision or pytest.skip("auto measured twice and chose differently")
    assert same_tensors(again.model.state_dict(), whole.model.state_dict())
    assert again.scaler.state_dict() == whole.scaler.state_dict()


# ---- cadences and the log ----

def test_C7_cadences_count_optimizer_steps(options):
    chosen = options(accumulation_steps=2, batch_size=1, eval_share=0.1, logging_steps=3, eval_steps=4, save_steps=5,
                     save_total_limit=None)
    steps = len(train(chosen).history)
    assert steps > 10
    lines = [row["step"] for row in log_lines(chosen) if "event" not in row]
    assert lines == sorted({*range(3, steps + 1, 3), steps})                      # and the last one
    assert [e["step"] for e in events(chosen, "eval")] == sorted({*range(4, steps + 1, 4), steps})
    due = [s for s in range(5, steps, 5)]
    assert [e["step"] for e in events(chosen, "save")] == [*due, steps]
    assert {f"TinySeek_Pre1_1_s{s}" for s in due} | {"TinySeek_Pre_final", "TinySeek_Pre_best"} == set(names(chosen))


def test_C7_a_short_run_gets_about_ten_evaluations_and_a_line_for_every_step(options):
    chosen = options(eval_share=0.1, logging_steps="auto", eval_steps="auto", max_steps=30, max_epochs=9)
    assert train(chosen).step == 30
    assert [e["step"] for e in events(chosen, "eval")] == list(range(3, 31, 3))
    assert [row["step"] for row in log_lines(chosen) if "event" not in row] == list(range(1, 31))


def test_the_log_counts_the_epochs_that_a_run_will_reach(options):
    """A thousand epochs that a limit of steps ends in the second one are two."""
    one = build_stage(options()).train.steps(1)
    for limit, epochs in ((one + 2, 2), (one - 2, 1), (None, 3)):
        chosen = options(max_epochs=3 if limit is None else 1000, max_steps=limit, name=f"limit{limit}")
        train(chosen)
        lines = [row for row in log_lines(chosen) if "event" not in row]
        assert {row["epochs"] for row in lines} == {epochs} and lines[-1]["epoch"] == epochs


def test_C7_null_is_off_and_zero_is_an_error(options):
    chosen = options(eval_share=0.1, logging_steps=None, eval_steps=None, save_steps=None)
    train(chosen)
    assert [row["event"] for row in log_lines(chosen)] == ["eval", "save"]        # those of the end
    for key in ("logging_steps", "eval_steps", "save_steps"):
        for value in (0, -1):
            with pytest.raises(UserError) as error:
                options(**{key: value})
            assert error.value.code == 2


def test_E4_every_line_has_norm_rate_and_what_was_optimised(options):
    """The numbers of log.txt and of the .jsonl are those of the step."""
    chosen = options(alpha=0.5, n_of_samples=15, max_epochs=2)
    history = train(chosen).history
    rows = log_lines(chosen)[:-1]
    text, = read_log(chosen["log_file"])
    assert len(rows) == len(text) == len(history)
    for row, step, i in zip(rows, history, range(len(history))):
        for key in ("loss", "ce_1", "ce_2", "lexp", "grad_norm", "lr"):
            assert row[key] == pytest.approx(step[key], rel=1e-6), key
        assert row["loss"] == pytest.approx(row["ce_1"] + row["ce_2"] + 0.5 * row["lexp"], rel=1e-6)
        assert row["ppx_1"] == pytest.approx(math.exp(row["ce_1"])) and row["ppx_2"] == pytest.approx(
            math.exp(row["ce_2"]))
        for name, key in (("Loss", "loss"), ("GradNorm", "grad_norm"), ("LR", "lr"), ("Ppx_2", "ppx_2"),
                          ("Lexp", "lexp")):
            assert text.get(name)[i] == pytest.approx(row[key], rel=1e-3, abs=1e-4)
        place = step["places"][-1]
        assert (row["epoch"], row["index"], row["batch"]) == (place.epoch + 1, place.chunk + 1, place.batch + 1)
        assert (row["epochs"], row["indexes"]) == (2, 2) and row["batch"] <= row["batches"]
    load = torch.tensor(rows[0]["expert_load"])
    torch.testing.assert_close(load.sum(-1), torch.ones(2), rtol=1e-5, atol=1e-5)


def test_the_header_holds_the_resolved_configuration(options):
    chosen = options()
    train(chosen)
    path, = Path(chosen["log_dir"]).glob("pre_*.jsonl")
    header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert header["config.n_layer"] == 2 and header["config.init_lr"] == 5e-3
    assert header["trainable"] == header["params"] > 0


def test_C1_C2_chunk_checkpoints_and_last_index(options):
    """Every second chunk is saved; --last_index goes on after it and sees nothing twice."""
    keys = dict(rows=50, n_of_samples=10, save_frq=2, save_total_limit=None, dropout=0.1)
    whole = train(options(**keys))
    chosen = options(**keys)
    assert names(chosen) == ["TinySeek_Pre2_1", "TinySeek_Pre4_1", "TinySeek_Pre_final"] == names(chosen, ".state")
    again = train({**chosen, "last_index": 2})
    assert {h["chunk"] for h in again.history} == {3, 4, 5}
    assert [h["places"] for h in again.history] == [h["places"] for h in whole.history if h["chunk"] > 2]
    assert same_tensors(again.model.state_dict(), whole.model.state_dict())
    with pytest.raises(UserError) as error:
        train({**chosen, "last_index": 3})
    assert error.value.code == 3


def test_C1_names_in_a_second_epoch_and_with_a_name(options):
    chosen = options(name="试验", max_epochs=2, save_frq=1, save_total_limit=None)
    train(chosen)
    folder = Path(chosen["out_dir"]) / "试验"
    assert sorted(p.name for p in folder.glob("*.pkl")) == [f"TinySeek_Pre{n}.pkl" for n in ("1_1", "1_2", "_final")]


# ---- stopping early ----

def scripted(monkeypatch, losses):
    """Held-out losses in this order, the last one for ever."""
    left = list(losses)
    monkeypatch.setattr(loop_file, "evaluate",
                        lambda *_: {"loss": left[0], "ce_1": left.pop(0) if len(left) > 1 else left[0]})


def test_E1_early_stopping_on_scripted_losses(options, monkeypatch):
    scripted(monkeypatch, [3, 2, 2.5, 2, 2.1, 1])
    chosen = options(eval_share=0.1, eval_steps=1, early_stopping=True)
    loop = train(chosen)
    assert len(loop.history) == 5                                                 # best at 2, patience 3
    stop, = events(chosen, "early_stop")
    assert stop["step"] == 5 and stop["best"] == 2
    assert checkpoint(chosen, "TinySeek_Pre_best")["step"] == 2 and checkpoint(chosen,
        "TinySeek_Pre_final")["step"] == 5


def test_E1_off_by_default_threshold_and_patience(options, monkeypatch):
    scripted(monkeypatch, [3, 3])
    worse = options(eval_share=0.1, eval_steps=1)
    assert len(train(worse).history) == train(worse).total_steps > 6
    scripted(monkeypatch, [3, 2.95, 2.8, 2.75, 2.71, 2])
    strict = options(name="strict", eval_share=0.1, eval_steps=1, early_stopping=True, early_stopping_patience=2,
                     early_stopping_threshold=0.1)
    assert len(train(strict).history) == 5


def test_E1_C3_patience_and_best_survive_an_interruption(options, monkeypatch):
    scripted(monkeypatch, [3, 2, 2.5])
    chosen = options(eval_share=0.1, eval_steps=1, early_stopping=True)
    assert train(chosen, stop_after=3).exit == 143
    scripted(monkeypatch, [2.5])
    again = train(chosen)
    assert [h["step"] for h in again.history] == [4, 5] and events(chosen, "early_stop")[0]["best"] == 2


def test_held_out_data_without_targets_stops_nothing(options):
    rows = [{"prompt": "月亮" * 30, "response": "茶"}] * 3 + [{"prompt": "书", "response": "茶"}] * 20
    chosen = options("sft", rows, eval_share=0.02, max_len=16, eval_steps=1)
    assert train(chosen, "sft").exit == 0 and "TinySeek_SFT_best" not in names(chosen)


def test_sft_learns_replies_from_a_pre_trained_model(options):
    pre = options(init_lr=1e-2)
    train(pre)
    chosen = options("sft", 30, pretraining_model_path=str(Path(pre["out_dir"]) / "TinySeek_Pre_final.pkl"),
                     max_epochs=3)
    loop = train(chosen, "sft")
    assert loop.history[-1]["loss"] < 0.8 * loop.history[0]["loss"]
    assert checkpoint(chosen, "TinySeek_SFT_final")["stage"] == "SFT"


def test_a_loss_that_is_no_number_counts_in_fp16_too(options):
    """A scale that may still come down excuses an endless gradient, not an endless loss: the third one ends the run."""
    stage = build_stage(options(mixed_precision="fp16"))
    loss = stage.loss

    def spoiled(*args):
        value, sums = loss(*args)
        return value, {**sums, "ce_1": sums["ce_1"] * math.nan}
    stage.loss = spoiled
    with pytest.raises(UserError) as error:
        run_loop(stage)
    assert error.value.code == 5


@pytest.mark.parametrize("eval_steps", [None, 4, 1000])
def test_a_run_evaluates_at_its_end_before_it_saves(options, eval_steps):
    chosen = options(eval_share=0.2, max_epochs=3, max_steps=12, eval_steps=eval_steps, init_lr=1e-2)
    loop = train(chosen)
    last = events(chosen, "eval")[-1]
    assert last["step"] == 12 and checkpoint(chosen, "TinySeek_Pre_final")["metrics"]["eval_loss"] == last["eval_loss"]
    at_the_end = [e["event"] for e in log_lines(chosen) if e.get("step") == 12 and e.get("event") in ("eval", "save")]
    assert at_the_end == ["eval", "save"]
    best = min(events(chosen, "eval"), key=lambda e: e["eval_loss"])
    assert checkpoint(chosen, "TinySeek_Pre_best")["metrics"]["eval_loss"] == best["eval_loss"]
    assert loop.held["eval_loss"] == last["eval_loss"]

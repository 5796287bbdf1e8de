"""Held-out loss against one document at a time."""
import math

import pytest
import torch

from tools.train_log import perplexity
from toy import build_stage, dialogue_rows, text_rows
from train_agent.trainers.running.evaluation import evaluate
from train_agent.trainers.dataset import PackedData

CPU = torch.device("cpu")


def by_hand(model, data):
    """Mean cross-entropy of both heads over all targets, from each document alone, cut where the rows cut it."""
    sums, counts = [0.0, 0.0], [0, 0]
    for i in data.documents:
        ids, supervised = (torch.from_numpy(t) for t in data.cache.document(i))
        for start in range(0, len(ids) - 1, data.width):
            piece = ids[start:min(start + data.width, len(ids) - 1)]
            out = model(piece[None])
            for head, logits in enumerate((out.logits_1, out.logits_2)):
                for t, row in enumerate(logits[0] if logits is not None else []):
                    place = start + t + head + 1
                    if place < len(ids) and supervised[place]:
                        sums[head] -= float(row.log_softmax(-1)[ids[place]])
                        counts[head] += 1
            if data.truncate:
                break
    return [s / c for s, c in zip(sums, counts) if c]


@pytest.mark.parametrize("stage", ["pre", "sft"])
def test_E2_token_weighted_over_uneven_batches_and_nothing_dropped(options, stage):
    """Seven documents of very different lengths, three rows a batch, chunks that training would cut off."""
    rows = text_rows(60, seed=3) if stage == "pre" else dialogue_rows(60, seed=3)
    built = build_stage(options(stage, rows, eval_share=0.12, batch_size=3, n_of_samples=2, n_of_samplings=1), stage)
    data, model = built.held["held"], built.model.double().eval()
    assert len(data.documents) == 8 and data.chunks == 4
    with torch.no_grad():
        ce = by_hand(model, data)
    result = evaluate(model, data, CPU, "no")
    assert [result["ce_1"], result["ce_2"]] == pytest.approx(ce, rel=1e-6)
    assert result["loss"] == pytest.approx(sum(ce), rel=1e-6)


def test_E2_eval_mode_no_gradient_and_back_to_train(options):
    built = build_stage(options(eval_share=0.2, dropout=0.5, router_noise=1.0))
    model, data = built.model.train(), built.held["held"]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes, state = [], torch.get_rng_state()
    model.register_forward_hook(lambda *_: modes.append((model.training, torch.is_grad_enabled())))
    first = evaluate(model, data, CPU, "no")
    assert evaluate(model, data, CPU, "no") == first                              # no dropout, no noise
    assert set(modes) == {(False, False)} and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and all(p.grad is None
        for p in model.parameters())
    model.eval()
    evaluate(model, data, CPU, "no")
    assert not model.training


def test_one_head_has_one_cross_entropy(options):
    built = build_stage(options(eval_share=0.2, use_fc2=False))
    result = evaluate(built.model, built.held["held"], CPU, "no")
    assert set(result) == {"loss", "ce_1"} and result["loss"] == result["ce_1"]


def test_held_out_rows_without_any_target_are_not_a_perfect_score(options):
    """Questions longer than a row: nothing of the answers is left."""
    rows = [{"prompt": "月亮" * 30, "response": "茶"}] * 20 + [{"prompt": "书", "response": "茶"}]
    built = build_stage(options("sft", rows, max_len=16), "sft")
    result = evaluate(
        built.model, PackedData(built.train.cache, range(20), built.options, truncate=True, shuffle=False), CPU, "no")
    assert math.isnan(result["loss"]) and math.isnan(result["ce_1"])


def test_E3_perplexity_is_exp_and_never_overflows():
    assert perplexity(1.5) == pytest.approx(math.exp(1.5)) and perplexity(0) == 1
    assert math.isfinite(perplexity(1e9)) and math.isnan(perplexity(math.nan))
    assert torch.isfinite(torch.tensor(perplexity(1e9), dtype=torch.float32))

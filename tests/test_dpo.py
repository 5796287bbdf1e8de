"""DPO as a stage of the one loop: its loss by hand, its start, its gradient, files, resumption, and what users get
wrong."""
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from model.build import build
from tools.checkpoint import load_chain, read_checkpoint, weights_hash
from tools.errors import UserError
from train_agent import dpo_train
from train_agent.trainers import dpo_tuning
from train_agent.trainers.dataset import Position
from train_agent.trainers.preflight import first_preference, preflight

ROUNDING = 1e-4


def pair_rows(count, seed=0):
    """The chosen reply says a thing twice, the rejected one says two: something that a toy model can learn to
    prefer."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        one, other = rng.sample(toy.THINGS, 2)
        turns = [{"from": "human", "value": f"{one}呢？"}]
        if number % 4 == 1:
            turns = [{"from": "human", "value": f"{other}呢？"}, {"from": "gpt", "value": f"{other}不见了。"}, *turns]
        prompt = {"prompt": f"{one}呢？"} if number % 4 == 0 else {"conversations": turns}
        made.append({**prompt, "chosen": f"{one}，{one}。", "rejected": f"{other}，{one}不见了。"})
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    folder = tmp_path_factory.mktemp("dpo")
    toy.train(toy.toy_options(folder, vocab, "sft", 40, name="base", logging_steps=None), "sft")
    return folder


def dpo_options(world, vocab, rows=None, **keys):
    values = {"pretraining_model_path": str(world / "out/base/TinySeek_SFT_final.pkl"), "eval_share": 0.2,
              "batch_size": 4, **keys}
    return toy.toy_options(world, vocab, "dpo", rows or pair_rows(20), **values)


def final(options):
    return Path(options["out_dir"], options["name"], "TinySeek_DPO_final.pkl")


def first_batch(stage):
    return stage.train.batch(Position(0, 0, 0))


def log_p(model, ids, reply_from):
    """log p of ids[reply_from:] given what is before, one token after the other."""
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits_1[0].log_softmax(-1)
    return float(sum(rows[i - 1, ids[i]] for i in range(reply_from, len(ids))))


def by_hand(model, cache, document):
    """log p of the last reply of a document, whose tokens start behind the last Assistant and its colon."""
    ids = cache.document(document)[0].tolist()
    return log_p(model, ids, len(ids) - ids[::-1].index(10) + 1)


# ---------------------------------------------------------------- the loss

def test_the_loss_is_the_formula_by_hand(world, vocab):
    stage = toy.build_stage(dpo_options(world, vocab, name="formula", beta=0.3), "dpo")
    reference, policy = stage.model.eval(), toy.build_stage(dpo_options(world, vocab, name="formula"),
                                                            "dpo").model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = first_batch(stage)
    loss, sums = stage.loss(policy, batch, {"targets_1": batch.targets_1, "targets_2": 0, "tokens": batch.tokens})
    margins = []
    for pair in stage.train.items(Position(0, 0, 0)):
        gains = [by_hand(policy, stage.train.cache, d) - by_hand(reference, stage.train.cache, d)
                 for d in (pair, pair + 1)]
        margins.append(0.3 * (gains[0] - gains[1]))
    expected = sum(math.log(1 + math.exp(-m)) for m in margins) / len(margins)
    assert float(sums["margin"]) == pytest.approx(sum(margins), abs=ROUNDING) and abs(margins[0]) > 0.01
    assert float(sums["ce_1"]) / batch.targets_1 == pytest.approx(expected, abs=ROUNDING)
    assert float(loss) == pytest.approx(expected + float(sums["aux"]) / batch.tokens, abs=ROUNDING)
    assert float(sums["accuracy"]) == sum(m > 0 for m in margins)
    assert float(sums["reward_chosen"] - sums["reward_rejected"]) == pytest.approx(float(sums["margin"]), abs=ROUNDING)


def test_at_the_start_the_margin_is_zero_and_the_loss_ln_2(world, vocab):
    options = dpo_options(world, vocab, name="start", max_steps=1)
    loop = toy.train(options, "dpo")
    first = loop.history[0]
    assert first["ce_1"] == pytest.approx(math.log(2), abs=ROUNDING)
    for name in ("margin", "reward_chosen", "reward_rejected"):
        assert first[name] == pytest.approx(0, abs=ROUNDING)


def test_the_preflight_knows_that_the_first_loss_is_ln_2(world, vocab):
    said = []
    stage = dpo_tuning.build_stage(dpo_options(world, vocab, name="ahead"))
    found = preflight(stage, seconds=0, say=said.append)["first_loss"]
    assert found["level"] == "ok" and "ln 2 = 0.693。正常" in found["text"] and "随机猜测" not in "".join(said)
    assert first_preference({"ce_1": 0.9}, 0)["level"] == "warn"
    assert "ln 2" in first_preference({"ce_1": 0.4}, 30)["text"]


def test_a_step_along_the_gradient_raises_chosen_over_rejected(world, vocab):
    stage = toy.build_stage(dpo_options(world, vocab, name="direction"), "dpo")
    batch, model = first_batch(stage), stage.model
    totals = {"targets_1": batch.targets_1, "targets_2": 0, "tokens": batch.tokens}
    loss, before = stage.loss(model, batch, totals)
    loss.backward()
    assert model.fc2.weight.grad is None and not model.fc2.weight.requires_grad
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
        after = stage.loss(model, batch, totals)[1]
    assert float(after["margin"]) > float(before["margin"]) + 1e-4
    assert float(after["reward_chosen"]) > 0 > float(after["reward_rejected"])


def test_beta_scales_the_rewards(world, vocab):
    margins = []
    for beta in (0.1, 0.2):
        stage = toy.build_stage(dpo_options(world, vocab, name="beta", beta=beta), "dpo")
        with torch.no_grad():
            stage.model.fc1.weight *= 1.1
        batch = first_batch(stage)
        margins.append(
            float(stage.loss(stage.model, batch, {"targets_1": 1, "targets_2": 0, "tokens": 1})[1]["margin"]))
    assert margins[1] == pytest.approx(2 * margins[0], rel=1e-5)


# ---------------------------------------------------------------- data

def test_both_documents_of_a_pair_and_only_their_last_reply(world, vocab):
    stage = toy.build_stage(dpo_options(world, vocab, name="data", max_len=40), "dpo")
    data, rows = stage.train, pair_rows(20)
    for number in range(data.batches_in(0, 0)):
        batch = data.batch(Position(0, 0, number))
        for i, pair in enumerate(data.items(Position(0, 0, number))):
            row = rows[int(data.cache.rows[pair])]
            for side, text in enumerate((row["chosen"], row["rejected"])):
                mine = batch.owner == 2 * i + side
                targets = batch.labels[0, mine]
                assert vocab.decode(targets[targets >= 0][:-1].tolist()) == text and int(targets[-1]) == 1
    held = set(data.cache.rows[stage.held["held"].documents].tolist())
    assert held == {0, 5, 10, 15} and not held & set(data.cache.rows[data.documents].tolist())
    assert batch.blank().targets_1 == 0 and not float(
        stage.loss(stage.model, batch.blank(), {"targets_1": 4, "targets_2": 0, "tokens": 9})[1]["ce_1"])


def test_bad_rows_are_left_out_and_named(world, vocab, capsys):
    rows = pair_rows(8)
    rows[2] = {"prompt": "茶呢？", "chosen": "一样", "rejected": "一样"}
    rows[4] = {"prompt": "茶呢？", "response": "很好看"}
    rows[6] = {"conversations": [{"from": "human", "value": "书" * 60}], "chosen": "很好看。", "rejected": "不见了。"}
    options = dpo_options(world, vocab, rows, name="bad", eval_share=0.0)
    stage = toy.build_stage(options, "dpo")
    assert sorted(stage.train.cache.rows[stage.train.documents].tolist()) == [0, 1, 3, 5, 7]
    told = capsys.readouterr().err
    assert "max_len=40" in told and "第 7 行" in told
    listed = (Path(options["log_dir"]) / "bad_lines.jsonl").read_text(encoding="utf-8")
    assert "一样" in listed and "chosen" in listed and '"line": 3' in listed and '"line": 5' in listed


def test_the_reference_is_computed_once_and_kept(world, vocab, monkeypatch):
    options, calls = dpo_options(world, vocab, name="once"), []
    original = dpo_tuning.scored
    monkeypatch.setattr(dpo_tuning, "scored", lambda *a: calls.append(1) or original(*a))
    for kept in Path(options["cache_dir"]).glob("dpo_*.npy"):
        kept.unlink()
    first = toy.build_stage(options, "dpo").train.reference
    again = toy.build_stage(options, "dpo").train.reference
    # training and held-out pairs, each once
    assert len(calls) == 2 and np.array_equal(first, again)
    next(Path(options["cache_dir"]).glob("dpo_*.npy")).write_bytes(b"half")       # a damaged one is made again
    assert np.array_equal(toy.build_stage(options, "dpo").train.reference, first) and len(calls) == 3
    assert (first != 0).sum() == 2 * 16 and first.max() <= 0


# ---------------------------------------------------------------- whole runs

def test_C1_a_run_learns_the_preference_and_leaves_its_files(world, vocab):
    options = dpo_options(world, vocab, pair_rows(60), name="whole", max_epochs=12, eval_steps=10, init_lr=3e-3,
                          min_lr=1e-4)
    loop = toy.train(options, "dpo")
    assert loop.exit == 0 and loop.held["eval_accuracy"] >= 0.9 and loop.held["eval_margin"] > 0.1
    payload = read_checkpoint(final(options))
    assert payload["stage"] == "DPO" and payload["kind"] == "model" and payload["base"] is None
    base = read_checkpoint(options["pretraining_model_path"])
    assert weights_hash(payload["weights"]) != weights_hash(base["weights"]) and torch.equal(
        payload["weights"]["fc2.weight"], base["weights"]["fc2.weight"])
    ids = torch.randint(16, 200, (1, 7))
    with torch.no_grad():
        assert torch.equal(build(load_chain(final(options)))(ids).logits_1, loop.model.eval()(ids).logits_1)
    rows = [r for r in toy.log_lines(options) if "margin" in r]
    assert {"accuracy", "margin", "reward_chosen", "reward_rejected",
            "ce_1"} <= set(rows[-1]) and rows[-1]["margin"] > rows[0]["margin"]
    assert "Margin: " in Path(options["log_file"]).read_text(encoding="utf-8")


def test_C3_resume_is_bit_identical(world, vocab):
    keys = {"save_steps": 2, "eval_steps": 3, "max_epochs": 2}
    options = dpo_options(world, vocab, name="straight", **keys)
    whole = toy.train(options, "dpo")
    lines = toy.log_lines(options)
    options = dpo_options(world, vocab, name="torn", **keys)
    assert toy.train(options, "dpo", stop_after=3).exit == 143
    assert toy.train(options, "dpo", kill_after=5).exit == -9
    again = toy.train(options, "dpo")
    assert again.exit == 0 and again.step == whole.step and again.held == whole.held
    assert toy.same_tensors(read_checkpoint(final(options))["weights"], whole.model.state_dict())
    evals = [[r for r in found if r.get("event") == "eval"] for found in (lines, toy.log_lines(options))]
    assert evals[0] == evals[1]


def arguments(world, **keys):
    data = toy.write_rows(world / "script.jsonl", pair_rows(12))
    values = {**toy.SHAPE, "device": "cpu", "out_dir": world / "out", "log_dir": world / "script_logs",
              "log_file": world / "script.txt",
              "vocab_trg_path": world / "vocab.json", "json_data_path": data, "max_len": 40, "max_steps": 3,
              "eval_share": 0.25, "batch_size": 3,
              "logging_steps": 1, "pretraining_model_path": world / "out/base/TinySeek_SFT_final.pkl",
              "name": "script", **keys}
    return [f"--{key}={value}" for key, value in values.items()]


def test_T1_the_script_runs_and_draws(world, capsys):
    dpo_train.main(arguments(world))
    assert (world / "out/script/TinySeek_DPO_final.pkl").exists() and (world
                                                                       / "script_logs/dpo_preference.png").stat(
                                                                           ).st_size > 10_000
    assert "偏好准确率" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        dpo_train.main(["--help"])
    assert end.value.code == 0


@pytest.mark.parametrize("asked", ["dry_run", "check_gradients", "overfit_one_batch=8", "find_lr"])
def test_E5_E6_checks_work_for_it_too(world, asked, capsys):
    dpo_train.main(arguments(world, name="checks") + [f"--{asked}"])
    assert not (world / "out/checks/TinySeek_DPO_final.pkl").exists() and capsys.readouterr().out


WRONG = {"missing base": ({"pretraining_model_path": "no/such.pkl"}, 3, "sft_train.py"),
         "no base at all": ({"pretraining_model_path": "none"}, 2, "对话的模型"),
         "another shape": ({"hidden": 20}, 4, "hidden"),
         "an adapter": ({"pretraining_model_path": "{lora}"}, 4, "适配器"),
         "no data": ({"json_data_path": "none"}, 2, "chosen"),
         "plain dialogues": ({"json_data_path": "{dialogues}"}, 8, "偏好"),
         "replay": ({"replay_share": 0.2}, 2, "replay_share")}


@pytest.mark.parametrize("title", WRONG)
def test_what_users_get_wrong(world, vocab, title):
    change, code, words = WRONG[title]
    places = {"dialogues": toy.write_rows(world / "dialogues.jsonl", toy.dialogue_rows(30)),
              "lora": world / "out/lora/TinySeek_Lora_final.pkl"}
    if title == "an adapter" and not places["lora"].exists():
        toy.train(
            toy.toy_options(world, vocab, "lora", 8, name="lora", max_steps=1,
                            replay_data_path=str(world / "none.jsonl"),
                                  pretraining_model_path=str(world / "out/base/TinySeek_SFT_final.pkl"), rank=2),
                                  "lora")
    change = {k: str(v).format(**places) for k, v in change.items()}
    with pytest.raises(UserError) as error:
        dpo_train.main(arguments(world, name="wrong", **change))
    assert error.value.code == code and words in str(error.value)

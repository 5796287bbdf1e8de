"""The preflight: it changes nothing, its numbers follow from the model, and it stops what does not fit."""
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from toy import build_stage, checkpoint, events, same_tensors, train
from tools.errors import UserError
from train_agent.trainers import preflight as preflight_file
from train_agent.trainers.running import resume
from train_agent.trainers.trying import step_time
from train_agent.trainers.dataset import Position
from train_agent.trainers.loop import Loop
from train_agent.trainers.running.shown import PROMPTS
from train_agent.trainers.hardware.ram import memory_there
from train_agent.trainers.preflight import divisors, first_loss, preflight, suggestion
from train_agent.trainers.run_stage import start


@pytest.fixture
def stage(options):
    return build_stage(options(rows=60, eval_share=0.1, batch_size=2, accumulation_steps=2, max_epochs=2))


def test_nothing_is_changed(stage):
    stage.model.eval()
    marked = next(stage.model.parameters())
    marked.grad = torch.ones_like(marked)
    weights = {k: v.clone() for k, v in stage.model.state_dict().items()}
    resume.seed_everything(5)
    before = resume.random_states()
    preflight(stage, seconds=0, say=None)
    assert all(torch.equal(v, weights[k]) for k, v in stage.model.state_dict().items())
    assert torch.equal(marked.grad, torch.ones_like(marked)) and not stage.model.training
    assert sum(p.grad is not None for p in stage.model.parameters()) == 1
    after = resume.random_states()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])


def test_a_run_after_it_is_the_run_without_it(options, tmp_path):
    chosen = options(rows=20, dropout=0.1)
    without = train({**chosen, "out_dir": str(tmp_path / "a")})
    stage = build_stage({**chosen, "out_dir": str(tmp_path / "b")})
    preflight(stage, seconds=0, say=None)
    loop = Loop(stage)
    loop.run()
    assert loop.metrics["loss"] == without.metrics["loss"] and same_tensors(stage.model.state_dict(),
        without.model.state_dict())


def test_rows_from_the_middle_of_long_documents_are_fine_other_templates_are_not(options, monkeypatch):
    rows = [{"text": toy.THINGS[0] * 200}] + toy.text_rows(5)
    stage = build_stage(options(rows=rows, max_len=16, batch_size=1))
    middle = next(i for i in range(stage.train.batches_in(0, 0)) if stage.train.batch(Position(0, 0, i)).ids[0, 0] != 1)
    monkeypatch.setattr(preflight_file, "loader",
                        lambda *_: iter([([stage.train.batch(Position(0, 0, middle))], Position(), 1)]))
    assert any("模板一致" in line for line in preflight(stage, seconds=0, say=None)["checks"])
    stage.train.cache.tokens = np.where(stage.train.cache.tokens == 1, 5, stage.train.cache.tokens)
    with pytest.raises(UserError) as caught:
        preflight(stage, seconds=0, say=None)
    assert caught.value.code == 4 and "模板" in str(caught.value)


def test_parameters_and_first_loss(stage):
    found = preflight(stage, seconds=0, say=None)
    model, shape = stage.model, stage.about["config"]
    assert found["parameters"]["total"] == sum(p.numel()
                                               for p in model.parameters()) == sum(
                                                       found["parameters"]["parts"].values())
    routed = found["parameters"]["parts"]["路由专家"]
    assert found["parameters"]["active"] == found["parameters"]["total"] - round(routed
        * (1 - shape["keep"] / shape["other_experts"]))
    loss = found["first_loss"]
    assert loss["ln_vocab"] == math.log(shape["vocab_size"]) and abs(loss["ce_1"] - loss["ln_vocab"]) < 0.3
    assert loss["level"] == "ok" and "正常" in loss["text"]


def test_steps_time_and_memory(stage):
    found = preflight(stage, seconds=0, say=None)
    steps = stage.train.steps(2)
    assert found["steps"] == steps and found["seconds"]["training"] == pytest.approx(steps * found["seconds_per_step"])
    assert found["seconds_left"] == pytest.approx(sum(found["seconds"].values()))
    assert preflight(stage, seconds=0, done=steps - 3, say=None)["steps"] == 3
    assert found["memory"]["fixed"] == 16 * found["parameters"]["total"] and found["memory"]["batch"] > 0


def test_activations_grow_with_the_batch(options):
    small, large = (preflight(build_stage(options(rows=60, batch_size=b)), seconds=0, say=None)["memory"]["batch"]
                    for b in (1, 4))
    assert 2 < large / small < 5                        # the experts' weights in half precision stay as they are


def test_printed_in_chinese(stage):
    said = []
    preflight(stage, seconds=0, say=said.append)
    text = "\n".join(said)
    for word in ("训练前检查（预训练）", "词表", "模板一致", "参数", "ln", "内存", "秒一步", "总共只有"):
        assert word in text


@pytest.mark.parametrize("ce, fresh, level, word", [
    (math.log(500), True, "ok", "正常"), (0.02, True, "warn", "泄漏"), (math.log(500) + 2, True, "warn", "比随机猜测还差"),
    (math.nan, True, "warn", "不是有限数"),
    (2.0, False, "ok", "已经学过"), (math.log(500), False, "ok", "没有帮助"), (9.0, False, "warn", "不配")])
def test_first_loss_is_explained(ce, fresh, level, word):
    found = first_loss({"ce_1": ce, "loss": ce}, 500, fresh)
    assert found["level"] == level and word in found["text"]


def test_suggestion_keeps_the_rows_of_a_step(stage):
    stage = replace(stage, options={**stage.options, "batch_size": 8, "accumulation_steps": 3})
    base = {"steps": 1000, "device": "cpu"}
    fits = suggestion(stage, {**base, "memory": {"fixed": 100, "batch": 800, "needed": 900, "there": 10_000}})
    assert (fits["batch_size"], fits["accumulation_steps"], fits["text"]) == (8, 3, "")
    tight = suggestion(stage, {**base, "memory": {"fixed": 100, "batch": 800, "needed": 900, "there": 800}})
    assert (tight["batch_size"], tight["accumulation_steps"]) == (4, 6) and "内存不够" in tight["text"]
    roomy = suggestion(
        stage, {**base, "device": "cuda:0", "memory": {"fixed": 100, "batch": 800, "needed": 900, "there": 10_000}})
    assert (roomy["batch_size"], roomy["accumulation_steps"]) == (24, 1)
    none = suggestion(stage, {**base, "memory": {"fixed": 100, "batch": 800, "needed": 900, "there": 100}})
    assert none["batch_size"] == 1 and "放不下" in none["text"]
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize("batch, limit, words", [
    (4, 8, ["✓ --batch_size 4 --accumulation_steps 1 现在这样就好"]), (4, 5000, ["⚠ 总共只有", "减小 batch_size"]),
    (1, None, ["⚠ 总共只有", "加大 max_epochs"])])
def test_no_advice_against_what_was_asked_for(options, batch, limit, words):
    """Few steps because the user said so need no other batch; nor does a value that is already as small as it gets."""
    said, rows = [], 30 if batch > 1 else 8
    stage = build_stage(options(rows=rows, batch_size=batch, max_steps=limit, max_epochs=2))
    preflight(stage, seconds=0, say=said.append)
    assert all(word in said[-1] for word in words) and "建议 --" not in said[-1]
    assert batch > 1 or "减小" not in said[-1]


def test_what_does_not_fit_is_code_4(stage):
    stage.about["config"]["vocab_size"] = 100
    with pytest.raises(UserError) as error:
        preflight(stage, seconds=0, say=None)
    assert error.value.code == 4 and "词表" in str(error.value)


def test_memory_of_this_machine():
    there = memory_there(torch.device("cpu"))
    assert there is None or there > 1 << 20


def test_evaluations_are_counted_in(stage, monkeypatch):
    monkeypatch.setattr(step_time, "held_seconds", lambda loop: 7.0)
    stage.options["eval_steps"] = 10
    found = preflight(stage, seconds=0, say=None)
    assert found["seconds"]["evaluating"] == 7.0 * (found["steps"] // 10 + 1)


def test_sft_stage(options):
    found = preflight(build_stage(options("sft"), "sft"), seconds=0, say=None)
    assert any("角色标记" in line for line in found["checks"]) and found["first_loss"]["level"] == "ok"


def test_every_training_opens_with_data_check_and_preflight(options, tmp_path, capsys):
    chosen = options(rows=40, eval_share=0.1, dropout=0.1)
    plain = train({**chosen, "out_dir": str(tmp_path / "a")})
    opened = {**chosen, "out_dir": str(tmp_path / "b"), "log_dir": str(tmp_path / "logs"),
              "log_file": str(tmp_path / "log.txt")}
    start(build_stage, opened)
    said = capsys.readouterr().out
    assert "数据体检" in said and "训练前检查（预训练）" in said
    [check], [found] = (events(opened, kind) for kind in ("data_check", "preflight"))
    assert check["rows"] == 40 and "结论" in check["verdict"] and found["seconds_per_step"] > 0
    assert found["steps"] == plain.step
    said = events(opened, "sample")                         # at the first line of the log, and at the end
    half = len(said) // 2
    assert 0 < half <= PROMPTS and [s["prompt"] for s in said[:half]] == [s["prompt"] for s in said[half:]]
    header = json.loads(next(Path(opened["log_dir"]).glob("pre_2*.jsonl")).read_text(encoding="utf-8").splitlines()[0])
    assert header["code"] and header["machine.cores"] and header["identity.数据"] == plain.stage.identity["数据"]
    assert same_tensors(checkpoint(opened, "TinySeek_Pre_final")["weights"], dict(plain.model.state_dict()))

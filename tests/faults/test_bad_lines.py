"""Every class of bad line in every stage: no crash, each named in the log, and the same rows left out after a
resume."""
import json
import shutil
from pathlib import Path

import pytest

import toy
from bad_jsonl import BAD, ODD
from file_faults import report
from tools.reading.bad_lines import BadLines
from tools.errors import UserError
from tools.formats import parse_line

STAGES = ("pre", "sft", "lora", "prefix", "memory", "gate", "dpo")
QUIET = {"logging_steps": None, "save_best_model": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base and two experts on it."""
    folder, vocab = tmp_path_factory.mktemp("lines"), toy.toy_vocab()
    toy.train(toy.toy_options(folder, vocab, "sft", 20, name="base", max_steps=2, **QUIET), "sft")
    for number in "12":
        toy.train(
            toy.toy_options(folder, vocab, "lora", toy.dialogue_rows(12, int(number)), name=f"expert{number}",
                            max_steps=1, rank=2,
                                  pretraining_model_path=str(folder / "out/base/TinySeek_SFT_final.pkl"),
                                  replay_data_path=str(folder / "none"), **QUIET), "lora")
    return folder


def good_lines(stage, count=16):
    if stage == "pre":
        rows = toy.text_rows(count)
    elif stage == "dpo":
        rows = [
            {"prompt": r["conversations"][0]["content"], "chosen": r["conversations"][1]["content"],
             "rejected": "不知道。"} for r in toy.dialogue_rows(count)]
    else:
        rows = toy.dialogue_rows(count)
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def mixed(stage, strange):
    """-> (lines: a good one between any few strange ones, {line number from 1: class})"""
    good, lines, where = good_lines(stage), [], {}
    every = -(-len(strange) // (len(good) - 1))
    for number, (title, line) in enumerate(strange.items()):
        if number % every == 0:
            lines.append(good[number // every])
        lines.append(line)
        where[len(lines)] = title
    return lines + good[-(-len(strange) // every):], where


def stage_options(world, stage, lines, name, **keys):
    base = str(world / "out/base/TinySeek_SFT_final.pkl")
    own = {"gate": {"experts": [str(world / f"out/expert{n}/TinySeek_Lora_final.pkl") for n in "12"], "gate_hidden": 8},
           "memory": {"memory_tokens": 8, "memory_chapters": 2, "memory_topk": 1}, "prefix": {"prefix_len": 2},
           "lora": {"rank": 2}}.get(stage, {})
    more = {} if stage == "pre" else {"pretraining_model_path": base}
    if stage in ("lora", "prefix", "memory"):
        more["replay_data_path"] = str(world / "none")
    options = toy.toy_options(world, toy.toy_vocab(), stage, [], name=name, max_bad_share=1.0, eval_share=0.1,
                              max_epochs=2, save_steps=2, resume="auto", **own, **more, **keys)
    Path(options["json_data_path"]).write_bytes(b"\n".join(lines) + b"\n")
    return {**options, "log_dir": str(world / f"logs_{name}"), "cache_dir": str(world / f"cache_{name}")}


def used_rows(loop):
    """Zero-based data rows of each step."""
    return [sorted(r for p in h["places"] for r in loop.stage.train.source_rows(p)) for h in loop.history]


@pytest.mark.parametrize("stage", STAGES)
def test_D_bad_lines_are_named_and_stay_left_out(world, stage):
    lines, where = mixed(stage, BAD)
    whole = toy.train(stage_options(world, stage, lines, f"whole_{stage}"), stage)
    options = stage_options(world, stage, lines, f"cut_{stage}")
    first = toy.train(options, stage, stop_after=3)
    shutil.rmtree(options["cache_dir"])                                 # a resume that has to cut the data anew
    second = toy.train(options, stage)
    assert whole.exit == second.exit == 0 and first.exit == 143
    assert used_rows(first) + used_rows(second) == used_rows(whole)
    assert toy.same_tensors(whole.model.state_dict(), second.model.state_dict())
    assert not {row + 1 for rows in used_rows(whole) for row in rows} & set(where)
    named = [
        json.loads(line) for line in Path(whole.options["log_dir"],
                                          "bad_lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {n["line"]: where[n["line"]] for n in named} == where and all(n["reason"] and n["file"] for n in named)
    report(stage=stage, classes=len(BAD), crashes=0, steps=whole.step)


@pytest.mark.parametrize("stage", STAGES)
def test_D_odd_lines_crash_no_stage(world, stage):
    lines, _ = mixed(stage, ODD)
    loop = toy.train(stage_options(world, stage, lines, f"odd_{stage}", max_len=60), stage)
    assert loop.exit == 0 and loop.step > 2


def test_D_every_class_is_a_class_of_its_own():
    assert len(BAD) >= 40 and all(isinstance(parse_line(line), str) for line in BAD.values())
    assert len(set(BAD.values())) == len(BAD)


@pytest.mark.parametrize("stage", ["pre", "sft"])
def test_D7_too_many_of_them_end_with_8_before_the_first_step(world, stage):
    lines, _ = mixed(stage, BAD)
    with pytest.raises(UserError) as error:
        toy.train({**stage_options(world, stage, lines, f"many_{stage}"), "max_bad_share": 0.001}, stage)
    assert error.value.code == 8 and not (world / f"logs_many_{stage}" / "log.txt").exists()


def test_control_a_reader_that_trusts_its_lines_crashes():
    """Control arm: json.loads and a field, as most training scripts read their data."""
    crashed = 0
    for line in BAD.values():
        try:
            json.loads(line)["text"].encode()
        except Exception:
            crashed += 1
    report(control_classes=len(BAD), control_crashed=crashed)
    assert crashed > 40 and BadLines().count == 0

"""What is learned and what is held out, in every stage: nothing of a small file unless asked, rows that teach nothing
left out and named."""
import json
from pathlib import Path

import numpy as np
import pytest

import toy
from tools.errors import UserError
from chat_agent.evaluation.rows import left_out
from tools.reading.held_out import held_every
from train_agent.trainers.dataset import Position
from train_agent.trainers.data.split import announced, split_documents, teaches
from train_agent.trainers.data.token_cache import open_cache
from train_agent.trainers.run_stage import start

STAGES = ("pre", "sft", "lora", "prefix", "memory", "gate", "dpo")
QUIET = {"logging_steps": None, "save_best_model": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    """A base and two experts on it."""
    folder = tmp_path_factory.mktemp("split")
    toy.train(toy.toy_options(folder, vocab, "sft", 20, name="base", max_steps=2, **QUIET), "sft")
    for number in "12":
        toy.train(
            toy.toy_options(folder, vocab, "lora", toy.dialogue_rows(12, int(number)), name=f"expert{number}",
                            max_steps=1, rank=2,
                                  pretraining_model_path=str(folder / "out/base/TinySeek_SFT_final.pkl"),
                                  replay_data_path=str(folder / "none"), **QUIET), "lora")
    return folder


def rows_for(stage, count):
    if stage == "pre":
        return toy.text_rows(count)
    if stage == "dpo":
        return [{"prompt": f"{i}", "chosen": toy.THINGS[i % 8], "rejected": toy.DOINGS[i % 8]} for i in range(count)]
    return toy.dialogue_rows(count)


def stage_options(world, vocab, stage, rows, name, **keys):
    own = {"gate": {"experts": [str(world / f"out/expert{n}/TinySeek_Lora_final.pkl") for n in "12"], "gate_hidden": 8},
           "memory": {"memory_tokens": 8, "memory_chapters": 2, "memory_topk": 1}, "prefix": {"prefix_len": 2},
           "lora": {"rank": 2}}.get(stage, {})
    if stage not in ("pre", "gate"):
        own["pretraining_model_path"] = str(world / "out/base/TinySeek_SFT_final.pkl")
    if stage in ("lora", "prefix", "memory"):
        own["replay_data_path"] = str(world / "none")
    return toy.toy_options(world, vocab, stage, rows, name=name,
                           **{"max_steps": 2, "eval_share": None, **own, **QUIET, **keys})


def told(stage):
    return {k: stage.notes["rows"][k] for k in ("train", "held", "skipped")}


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 99])
def test_nothing_of_a_small_file_is_held_out_unasked(count):
    assert held_every(None, count) == 0


def test_of_more_every_fiftieth_is_held_out_from_the_first_on():
    assert held_every(None, 100) == held_every(None) == held_every(0.02, 3) == 50
    assert held_every(0) == held_every(0.0, 1000) == 0 and held_every(0.5) == 2 and held_every(0.1, 7) == 10


class Rows:
    """What split_documents reads of a token cache."""

    def __init__(self, rows):
        self.rows = np.asarray(rows)

    def __len__(self):
        return len(self.rows)


def test_the_split_of_documents():
    for count, held in ((99, []), (100, [0, 50]), (101, [0, 50, 100])):
        training, kept = split_documents(Rows(range(count)), None)
        assert kept.tolist() == held and len(training) == count - len(held)
    # asked for, but one row has to be left
    assert split_documents(Rows([0]), 0.02)[0].tolist() == [0]
    assert split_documents(Rows([0, 0, 0]), 0.5)[0].tolist() == [0, 1, 2]         # three documents of one row
    assert split_documents(Rows([0, 1]), 0.02)[1].tolist() == [0]
    assert len(split_documents(Rows(np.repeat(np.arange(60), 5)), None)[1]) == 0  # rows are counted, not documents


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [1, 5])
def test_every_stage_learns_every_row_of_a_small_file_and_says_so(world, vocab, stage, count, capsys):
    options = stage_options(world, vocab, stage, rows_for(stage, count), f"{stage}{count}",
                            log_dir=str(world / f"logs_{stage}{count}"), logging_steps=1)
    made = []
    start(lambda o: made.append(toy.build_stage(o, stage)) or made[0], options)
    assert told(made[0]) == {"train": count, "held": 0, "skipped": 0} and not made[0].held
    assert f"训练 {count} 行，留出 0 行" in capsys.readouterr().out
    header = json.loads(
        next(Path(options["log_dir"]).glob(f"{stage}_2*.jsonl")).read_text(encoding="utf-8").splitlines()[0])
    assert (header["rows.train"], header["rows.held"]) == (count, 0)


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_asked_for_is_held_out_of_a_small_file_too(world, vocab, stage):
    built = toy.build_stage(stage_options(world, vocab, stage, rows_for(stage, 10), f"{stage}_asked", eval_share=0.2),
                            stage)
    assert told(built) == {"train": 8, "held": 2, "skipped": 0} and len(built.held["held"].documents) == 2
    assert announced(built) == "训练 8 行，留出 2 行"


def test_a_file_of_its_own_is_held_out_whole(world, vocab):
    held = toy.write_rows(world / "held.jsonl", toy.dialogue_rows(7, 5))
    built = toy.build_stage(stage_options(world, vocab, "sft", rows_for("sft", 10), "own", eval_data_path=str(held)),
                            "sft")
    assert told(built) == {"train": 10, "held": 7, "skipped": 0}


def test_scoring_holds_out_the_same_rows(tmp_path):
    for count, every in ((99, 0), (100, 50), (1000, 50)):
        path = toy.write_rows(tmp_path / "a.jsonl", toy.text_rows(count))
        path.write_text(path.read_text(encoding="utf-8") + "\n{坏\n", encoding="utf-8")      # neither counts
        assert left_out(str(path), None) == every and left_out(str(path), 0.1) == 10 and left_out(str(path), 0) == 0


# ---------------------------------------------------------------- rows that teach nothing

LONG = {"messages": [{"role": "user", "content": "月亮" * 40}, {"role": "assistant", "content": "书。"}]}


@pytest.mark.parametrize(
    "keys", [{"batch_size": 1}, {"batch_size": 1, "seed": 1}, {"batch_size": 1, "seed": 3}, {"batch_size": 2},
                                  {"batch_size": 1, "accumulation_steps": 8, "seed": 1}, {"batch_size": 8}])
def test_a_run_does_not_hang_on_the_batch_that_comes_first(world, vocab, keys, capsys):
    rows = [row for one in toy.dialogue_rows(20) for row in (LONG, one)]
    built = toy.build_stage(stage_options(world, vocab, "sft", rows, "half", **keys), "sft")
    assert told(built) == {"train": 20, "held": 0, "skipped": 20} and "跳过 20 行" in announced(built)
    said = capsys.readouterr().err
    assert "20 行没有可学的内容" in said and "第 1、3、5" in said and "max_len" in said
    assert all(built.train.batch(Position(0, 0, n)).targets_1 for n in range(built.train.batches_in(0, 0)))
    assert start(lambda o: built, built.options)["loss"] > 0


@pytest.mark.parametrize("keys", [{}, {"eval_share": 0.5}, {"seed": 2, "batch_size": 1, "accumulation_steps": 4}])
def test_only_where_no_row_teaches_training_is_refused(world, vocab, keys):
    with pytest.raises(UserError) as error:
        toy.build_stage(stage_options(world, vocab, "sft", [LONG] * 30, "none", **keys), "sft")
    assert error.value.code == 8 and "没有一行" in str(error.value)
    built = toy.build_stage(stage_options(world, vocab, "sft", [toy.dialogue_rows(1)[0]] + [LONG] * 30, "one", **keys),
                            "sft")
    assert told(built)["train"] == 1 and not built.held


@pytest.mark.parametrize("stage, row, why", [
    ("dpo", {"prompt": "月亮" * 40, "chosen": "书。", "rejected": "茶。"}, "占满"), ("gate", {"text": "书放在桌上。"}, "没有用户的话"),
    ("dpo", {"prompt": "书呢？", "chosen": "书。", "rejected": "书。"}, ""), ("lora", LONG, "max_len"),
    ("prefix", LONG, "max_len"), ("memory", LONG, "max_len")])
def test_other_stages_skip_name_and_refuse_alike(world, vocab, stage, row, why, capsys):
    built = toy.build_stage(stage_options(world, vocab, stage, [row, *rows_for(stage, 5)], f"{stage}_few"), stage)
    rows = built.notes["rows"]
    assert rows["train"] == 5 and rows["skipped"] + rows["bad"] == 1 and why in capsys.readouterr().err
    with pytest.raises(UserError) as error:
        toy.build_stage(stage_options(world, vocab, stage, [row] * 3, f"{stage}_not"), stage)
    assert error.value.code == 8


def test_held_out_rows_that_teach_nothing_leave_no_held_out_set(world, vocab):
    for stage, row in (("dpo", {"prompt": "月亮" * 40, "chosen": "书。", "rejected": "茶。"}), ("gate", {"text": "书。"}),
                       ("sft", LONG)):
        held = toy.write_rows(world / f"held_{stage}.jsonl", [row] * 3)
        built = toy.build_stage(
            stage_options(world, vocab, stage, rows_for(stage, 6), f"{stage}_held", eval_data_path=str(held)), stage)
        assert not built.held and told(built)["held"] == 0


def test_targets_are_found_as_batches_have_them(world, vocab, tmp_path):
    path = toy.write_rows(tmp_path / "a.jsonl",
                          [row for one in toy.dialogue_rows(12) for row in (one, LONG, toy.text_rows(1)[0])])
    cache = open_cache(str(path), vocab, "instruction_finetuning", tmp_path)
    for width in (4, 5, 8, 20, 79, 80, 81, 200):
        plain = [cache.document(i)[1][1:width + 1].any() for i in range(len(cache))]
        assert teaches(cache, width).tolist() == plain

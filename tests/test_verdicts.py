"""A check-up's verdict: for which stage, with which vocabulary, over how much of the data; and what --output leaves of
it."""
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from test_check_data import clean_rows, dialogue, lines_of, passage, places, sentence, write
from tools import check_data, formats
from tools.checkup import wording
from tools.check_data import check, quick_check
from tools.checkup.aim import Aim, aim_of, natural_stage
from tools.checkup.clean import canonical, stripped, write_clean
from tools.checkup.vocabulary import stage_vocabulary
from tools.config.keys import STAGES, stage_of
from tools.errors import UserError
from tools.vocab import Vocab
from train_agent.trainers.run_stage import start
from train_agent.trainers.running.diary import check_up

ROOT = Path(__file__).resolve().parents[1]
PAIR = {"prompt": "选一个。", "chosen": "苹果很甜", "rejected": "苹果不甜"}
TALK = dialogue(("u", "书呢？"), ("a", "书放在桌上。"))


def talks(count, seed=0):
    return [row for row in clean_rows(random.Random(seed), 2 * count) if "messages" in row]


def command(*words):
    ran = subprocess.run([sys.executable, ROOT / "tools" / "check_data.py", *map(str, words)], capture_output=True,
                         text=True, encoding="utf-8")
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout, ran.stderr


# ---------------------------------------------------------------- the stage

@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_is_known_from_its_options(options, stage):
    assert stage_of(options(stage)) == stage


@pytest.mark.parametrize("row, stage", [({"text": "书放在桌上。"}, "pre"), (TALK, "sft"), (PAIR, "dpo")])
def test_a_file_is_judged_for_the_stage_its_rows_are_made_for(tmp_path, row, stage):
    path = toy.write_rows(tmp_path / "a.jsonl", [row] * 3 + [{"坏": 1}])
    assert natural_stage(str(path)) == stage
    assert f"--stage {stage}" in check(path, aim=Aim(stage), progress=False)["looked"]["options"]


def test_rows_that_are_no_pairs_are_bad_for_dpo_alone(tmp_path, vocab):
    path = toy.write_rows(tmp_path / "a.jsonl", [TALK] * 9 + [{**PAIR, "rejected": PAIR["chosen"]}])
    result = check(path, vocab=vocab, aim=Aim("dpo"), progress=False)
    assert result["level"] == "stop" and result["bad_lines"] == 10 and "偏好" in result["verdict"]
    assert check(path, vocab=vocab, aim=Aim("sft"), progress=False)["bad_lines"] == 0


def test_what_is_cut_depends_on_the_stage(tmp_path, vocab):
    rows = [{"text": "书放在桌上。" * 20}] * 2 + [dialogue(("u", "书呢？"), ("a", "书放在桌上。" * 20))] * 2
    path = toy.write_rows(tmp_path / "a.jsonl", rows)
    totals = {stage: check(path, vocab=vocab, aim=Aim(stage, stage == "pre", 20), progress=False)["totals"]
              for stage in ("pre", "sft", "gate")}
    assert [totals[s]["cut_rows"] for s in totals] == [0, 4, 0] and totals["pre"]["cut"] == 0
    assert totals["pre"]["learned"] == totals["pre"]["tokens"] - 4                # all but the first of each document
    assert totals["sft"]["learned"] == 2 * 20 + 2 * (21
                                                     - len(
                                                         "<User：书呢？Assistant：".replace("User",
                                                             "U").replace("Assistant", "A")))


def test_the_first_rows_are_shown_as_the_stage_learns_them(tmp_path, vocab, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    path = toy.write_rows(tmp_path / "a.jsonl", [TALK])
    shown = {stage: "\n".join(wording.views([path], vocab, aim=Aim(stage, stage == "pre", size)))
             for stage, size in (("pre", 400), ("sft", 10))}
    assert "<|im_end|>【User：书呢？Assistant：书放在桌上。<|im_end|>】" in shown["pre"] and "Assistant：【书放在】桌上" in shown["sft"]


def test_a_pair_needs_room_for_both_replies_and_the_gate_a_question(tmp_path, vocab):
    long = {"prompt": "书。" * 40, "chosen": "茶", "rejected": "雨伞"}
    result = check(toy.write_rows(tmp_path / "a.jsonl", [PAIR, long]), vocab=vocab, aim=Aim("dpo", max_len=30),
                   progress=False)
    assert places(result, "answer_lost") == [2] and result["looked"]["split"] == [1, 0, 1]
    result = check(toy.write_rows(tmp_path / "b.jsonl", [TALK, {"text": "书放在桌上。"}]), vocab=vocab, aim=Aim("gate"),
                   progress=False)
    assert places(result, "no_turn") == [2] and result["looked"]["split"] == [1, 0, 1]


def test_where_no_row_teaches_the_verdict_says_so(tmp_path, vocab):
    rows = [dialogue(("u", "书。" * 40), ("a", "茶。"))] * 5
    result = check(toy.write_rows(tmp_path / "a.jsonl", rows), vocab=vocab, aim=Aim("sft", max_len=30), progress=False)
    assert result["level"] == "stop" and "没有一行有可学的内容" in result["verdict"] and "max_len" in result["verdict"]


LONG = dialogue(("u", "书。" * 40), ("a", "茶。"))


@pytest.mark.parametrize("stage, rows", [
    ("sft", [TALK] * 4 + [{"坏": 1}] * 2), ("sft", [TALK] * 2 + [{"坏": 1}] * 2), ("sft", [TALK] + [{"坏": 1}] * 10),
    ("sft", [TALK] * 30 + [{"坏": 1}] * 10),
    ("sft", [TALK] * 30 + [{"坏": 1}] * 11), ("sft", [{"坏": 1}]), ("sft", [LONG] * 3), ("sft", [LONG, TALK]),
    ("sft", [TALK]), ("sft", [PAIR]), ("pre", [LONG]),
    ("dpo", [TALK] * 3), ("dpo", [PAIR]), ("dpo", [PAIR, {**PAIR, "rejected": PAIR["chosen"]}]),
    ("dpo", [PAIR, PAIR, {**PAIR, "rejected": PAIR["chosen"]}]),
    ("dpo", [{**PAIR, "prompt": "书。" * 40}] * 2), ("pre", [TALK] * 2), ("pre", [{"text": " "}])])
@pytest.mark.parametrize("fresh", [True, False])
def test_the_verdict_stops_exactly_what_training_refuses(options, ram_path, vocab, stage, rows, fresh):
    """With code 8, whether or not the folder has a vocabulary already, by command as by training."""
    keys = {
        "pretraining_model_path": str(ram_path / "out" / "base" / "TinySeek_Pre_final.pkl")} if stage == "dpo" else {}
    if stage == "dpo":
        toy.train(options(rows=5, name="base", max_steps=1))
    chosen = options(stage, rows, **keys)
    if fresh and stage != "dpo":
        chosen |= {"vocab_trg_path": str(ram_path / "new.json"), "vocab_data_path": chosen["json_data_path"],
                   "vocab_size": 500}
    stops = check_up(chosen)["level"] == "stop"
    seen = check(chosen["json_data_path"], vocab=vocab, aim=aim_of(stage, chosen), progress=False)["level"] == "stop"
    try:
        toy.build_stage(chosen, stage)
        code = 0
    except UserError as error:
        code = error.code
    # nothing is left of a refused start
    assert fresh is False or stage == "dpo" or (ram_path / "new.json").exists() == (code == 0)
    # without a vocabulary lengths are not known
    assert code == (8 if seen else 0) and (stops == seen or fresh and rows[0] == LONG)


# ---------------------------------------------------------------- the vocabulary

def test_the_start_model_brings_its_own_vocabulary(options, ram_path):
    other = Vocab.create_vocab(["只有这些字"], texts=True, progress=False)
    base = toy.toy_options(ram_path / "..", other, "pre", [{"text": "只有这些字"}] * 4, max_steps=1,
                           out_dir=str(ram_path / "base"),
                           vocab_trg_path=str(ram_path / "base.json")) if other.save(ram_path
                               / "base.json") is None else None
    toy.train(base)
    chosen = options("sft", [{"messages": TALK["messages"]}] * 5,
                     pretraining_model_path=str(ram_path / "base" / "TinySeek_Pre_final.pkl"),
                     vocab_trg_path=str(ram_path / "new" / "vocab.json"))
    vocab, origin = stage_vocabulary(chosen, "sft")
    assert vocab.hash == other.hash and "起点模型" in origin.text
    result = check_up(chosen)
    assert result["vocab"]["hash"] == other.hash and result["totals"]["tokens"] and result["level"] == "poor"
    assert "词表不合" in result["verdict"] and "vocab_data_path" in result["verdict"] and "可以训练" not in result["verdict"]


def test_without_a_vocabulary_nothing_is_called_clean(tmp_path, vocab):
    path = toy.write_rows(tmp_path / "a.jsonl", talks(20))
    blind, seen = (check(path, vocab=v, aim=Aim("sft"), progress=False) for v in (None, vocab))
    assert blind["level"] == "ok" and "没有词表，没有看词元" in blind["verdict"] and "数据干净" not in blind["verdict"]
    assert blind["looked"]["vocab"] is None and seen["looked"]["vocab"]


@pytest.mark.parametrize("share, good", [(0.01, True), (0.3, False), (0.8, False)])
def test_a_vocabulary_that_spells_in_bytes_is_no_good(tmp_path, vocab, share, good):
    rows = [{"text": toy.sentence(random.Random(i)) * 5 + "龘" * round(share * 60)} for i in range(10)]
    verdict = check(toy.write_rows(tmp_path / "a.jsonl", rows), vocab=vocab, near=False, aim=Aim("pre", True),
                    progress=False)
    assert (verdict["level"] != "poor") == good and ("词表不合" in verdict["verdict"]) != good


# ---------------------------------------------------------------- how much was looked at

def test_a_sample_is_not_called_clean(tmp_path, monkeypatch, vocab):
    monkeypatch.setattr(check_data, "QUICK_BYTES", 12_000)
    rows = list(clean_rows(random.Random(9), 400))
    vocab = Vocab.create_vocab(
        [text for row in rows for text in formats.row_texts(formats.parse_line(json.dumps(row).encode()))], texts=True,
        progress=False)
    result = quick_check(toy.write_rows(tmp_path / "a.jsonl", rows), vocab=vocab, say=None)
    assert result["level"] == "ok" and "只抽查了" in result["verdict"] and "没有查重复" in result["verdict"]
    assert "数据干净" not in result["verdict"]


@pytest.mark.parametrize("count, whole", [(30, True), (3000, False)])
def test_packed_data_alone_is_looked_at(tmp_path, monkeypatch, vocab, count, whole):
    monkeypatch.setattr(check_data, "QUICK_BYTES", 60_000)
    lines = lines_of(clean_rows(random.Random(3), count))
    lines[4] = b"oops"
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    said = []
    result = quick_check(path, vocab=vocab, say=said.append)
    assert result["rows"] > 20 and places(result, "JSON") == [5] and (result["share"] == 1) == whole
    assert whole or 0 < result["share"] < 0.5 and "抽查" in said[0]
    both = quick_check([path, write(tmp_path / "b.jsonl", lines)], vocab=vocab, say=None)
    assert all(f["rows"] for f in both["files"])


def test_many_files_of_which_some_are_not_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(check_data, "QUICK_BYTES", 3_000)
    for i in range(40):
        toy.write_rows(tmp_path / f"{i}.jsonl", talks(6, i))
    result = quick_check(str(tmp_path / "*.jsonl"), say=None)
    assert result["rows"] and "个文件没有抽到" in result["verdict"]


# ---------------------------------------------------------------- held-out data

def test_held_out_data_that_is_the_training_data(tmp_path, monkeypatch):
    rows = talks(30)
    path = toy.write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "again.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for held in (path, "a.jsonl", "again.jsonl"):
        with pytest.raises(UserError) as error:
            check(path, held, progress=False)
        assert error.value.code == 2 and "就是训练数据" in str(error.value)
        assert "就是训练数据" in quick_check(path, str(held), say=None)["verdict"]
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    code, said, _ = command(path, "--held", tmp_path / "copy.jsonl", "--out_dir", tmp_path / "out", "--token_kind",
                            "char")
    assert code == 0 and "留出的 30 行和训练的 30 行比过，30 行也在训练数据里" in said and "留出数据泄漏 30 行" in said


def test_every_start_compares_small_held_out_data(options, ram_path):
    rows = toy.dialogue_rows(20)
    held = toy.write_rows(ram_path / "held.jsonl", rows[:3])
    result = check_up(options("sft", rows, eval_data_path=str(held)))
    assert result["faults"]["leak"]["count"] == 3 and result["looked"]["split"] == [20, 3, 0]


def test_the_split_is_that_of_the_training(options, ram_path):
    for count in (1, 2, 99, 100, 101):
        for keys in ({"eval_share": None}, {"eval_share": 0.1}):
            chosen = options("sft", toy.dialogue_rows(count), **keys)
            rows = toy.build_stage(chosen, "sft").notes["rows"]
            assert check_up(chosen)["looked"]["split"] == [rows["train"], rows["held"], rows["skipped"]]


def test_short_rows_are_compared_as_a_whole_only_and_that_is_said(tmp_path):
    code, said, _ = command(toy.write_rows(tmp_path / "a.jsonl", toy.dialogue_rows(30)), "--out_dir", tmp_path / "out",
                            "--token_kind", "char")
    assert "近似重复只比 50 字以上的" in said and "更短的只查完全相同" in said
    assert "训练 30 行，留出 0 行" in said and "指令微调" in said


def test_cut_replies_are_called_cut_and_short_ones_short(tmp_path, vocab):
    cut = [dialogue(("u", "书呢？"), ("a", "书放在桌上。" * (40 + i))) for i in range(8)]
    short = [dialogue(("u", "书放在桌上，" * (20 + i)), ("a", "茶")) for i in range(8)]
    verdicts = [
        check(toy.write_rows(tmp_path / "a.jsonl", rows), vocab=vocab, near=False, aim=Aim("sft", max_len=size),
              progress=False)["hints"]
                for rows, size in ((cut, 20), (short, 400))]
    assert any("8 行超过 max_len 20" in hint for hint in verdicts[0]) and any("回答的词元被截断" in hint for hint in verdicts[0])
    assert not any("回答太短" in hint for hint in verdicts[0]) and any("回答太短" in hint for hint in verdicts[1])


def test_a_start_whose_data_could_not_be_checked_says_so(options, capsys, monkeypatch):
    def broken(*_, **__):
        raise UserError("读不了")
    monkeypatch.setattr(check_data, "quick_check", broken)
    chosen = options(rows=10, max_steps=1)
    start(toy.build_stage, chosen)
    assert "数据体检：没有做" in capsys.readouterr().out


# ---------------------------------------------------------------- --output

def dirty(rng):
    """-> (lines, how many rows are worth keeping)"""
    good = [{"text": passage(rng, 6, 8)} for _ in range(6)] + talks(6) + [PAIR | {"prompt": sentence(rng)}
        for _ in range(2)]
    marked = [dialogue(("u", "<|im_start|>user\n" + sentence(rng)), ("a", passage(rng) + "</s>")),
              {"text": "<s>" + passage(rng) + "\u200b<|endoftext|>"},
              dialogue(("u", "[INST] " + sentence(rng) + " [/INST]"), ("a", "Assistant：" + passage(rng)))]
    gone = [good[0], good[7], {"text": good[1]["text"].replace("。", "！", 1)}, {"text": "</s>"}, {"坏": 1},
            dialogue(("u", "问"), ("a", "……")),
            {"text": "<s>" + good[2]["text"] + "</s>"}, {**PAIR, "rejected": PAIR["chosen"]}]
    return lines_of(good + marked + gone) + [b"oops", b"{}"], len(good) + len(marked)


def test_what_is_written_is_clean_counted_and_trains(tmp_path, vocab):
    lines, kept = dirty(random.Random(5))
    source, output = write(tmp_path / "a.jsonl", lines), tmp_path / "clean.jsonl"
    code, said, _ = command(source, "--output", output, "--out_dir", tmp_path / "out", "--token_kind", "char")
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == kept and f"：{kept} 行（读了 {len(lines)} 行" in said
    for word in ("坏行 4 行", "完全重复 3 行", "近似重复 1 行", "4 行里的别家标记"):
        assert word in said, said
    assert not any(mark in output.read_text(encoding="utf-8")
                   for mark in ("<|im", "<s>", "</s>", "INST", "\u200b", "Assistant：", "endoftext"))
    again = check(output, vocab=None, progress=False)
    assert not again["bad"] and set(again["faults"]) <= {"mixed"} and again["rows"] == kept
    talk = [row for row in rows if "messages" in row and "chosen" not in row]
    chosen = toy.toy_options(tmp_path, vocab, "sft", talk, max_steps=1, max_len=400)
    assert toy.train(chosen, "sft").exit == 0


def test_nothing_is_overwritten_and_nothing_is_written_in_vain(tmp_path):
    source = write(tmp_path / "a.jsonl", lines_of(talks(5)))
    before = source.read_bytes()
    for target in (source, tmp_path / "a.txt", tmp_path / "none" / "b.jsonl"):
        code, _, said = command(source, "--output", target, "--out_dir", tmp_path / "out", "--token_kind", "char")
        assert code == 2 and said.startswith("错误：") and source.read_bytes() == before
    with pytest.raises(UserError) as error:
        write_clean([str(write(tmp_path / "b.jsonl", [b"oops"] * 3))], tmp_path / "c.jsonl", None,
                    lambda path: Aim("sft"))
    assert error.value.code == 8 and not (tmp_path / "c.jsonl").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl"}


def test_repeated_rows_stay_where_they_are_wanted(tmp_path):
    source = write(tmp_path / "a.jsonl", lines_of(talks(5) * 2))
    assert command(source, "--output", tmp_path / "b.jsonl", "--keep_duplicates", "--out_dir", tmp_path / "out",
                   "--token_kind", "char")[0] == 0
    assert len((tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()) == 10


def test_the_written_shape_reads_back_as_the_same_row():
    thought = {
        "messages": [*TALK["messages"], {"role": "assistant", "content": "书", "reasoning_content": "想想", "weight": 0}]}
    rows = [{"text": "甲<|im_end|>乙"}, TALK, thought, PAIR,
            {"instruction": "问", "input": "甲", "output": "答", "history": [["一", "二"]]},
            {"prompt": "a\n\u2028b", "response": "😀\t"},
            dialogue(("s", "有礼貌"), ("u", ""), ("a", "嗯"))]
    for given in rows:
        row = formats.parse_line(json.dumps(given).encode())
        back = formats.parse_line(canonical(row).encode())
        assert (back.kind, back.texts, back.messages, back.chosen, back.rejected) == (row.kind, row.texts,
            row.messages, row.chosen, row.rejected)
        assert stripped(row) == row


FAMILIES = ["<|im_start|>user\n{}<|im_end|>", "[INST] {} [/INST]",
            "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
            "<start_of_turn>user\n{}<end_of_turn>", "<|user|>\n{}<|assistant|>", "<｜User｜>{}<｜Assistant｜>",
            "<reserved_106>{}<reserved_107>",
            "<beginning_of_sentence>user\n{}<end_of_sentence>", "<|User|>:{}<eoh>", "<｜hy_User｜>{}",
            "[gMASK]<sop>{}<|observation|>",
            "<|im_user|>user<|im_middle|>{}<|im_end|>", "]~!b[]~b]user\n{}[e~["]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_peoples_marks_are_named_and_go(tmp_path, family):
    """At either edge, in the middle, in the question as in the reply: never "clean", and nothing but words is left of
    them."""
    rng = random.Random(2)
    whole, words = family.format("山高水长"), sentence(rng)
    rows = [dialogue(("u", words + whole + words), ("a", passage(rng))),
            dialogue(("u", sentence(rng)), ("a", passage(rng) + whole + words))]
    for i, row in enumerate(rows):
        source = write(tmp_path / f"{i}.jsonl", lines_of([row, *talks(6)]))
        assert "forged" in check(source, vocab=None, progress=False)["faults"]
        command(source, "--output", tmp_path / f"clean{i}.jsonl", "--out_dir", tmp_path / "out", "--token_kind", "char")
        said = (tmp_path / f"clean{i}.jsonl").read_text(encoding="utf-8").splitlines()[0]
        assert "山高水长" in said and not any(mark in said for mark in ("<", ">", "[INST", "|", "｜", "~", "MASK")), said


def test_questions_without_a_reply_are_good_rows_of_a_reward_training(tmp_path, vocab):
    rows = [{"prompt": "书呢？", "pattern": "书"}, {"conversations": [{"role": "user", "content": "书呢？"}], "answer": 3}]
    path = toy.write_rows(tmp_path / "q.jsonl", rows + [{"text": "书。"}])
    found = check(path, vocab=vocab, aim=Aim("rl", max_len=40), progress=False)
    assert found["rows"] == 2 and found["bad_lines"] == 1

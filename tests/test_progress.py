"""run.py looks at what lies there before it believes its own notes: deleted, replaced and moved files, and numbers that
are none."""
import json
import math
import re
import shutil
from pathlib import Path

import pytest

import run
import toy
from test_pipeline import RUN, TINY
from toy_checkpoint import toy_payload
from tools.checkpoint import read_checkpoint, write_torch
from tools.process import signals
from tools.saving.atomic import finite
from tools.saving.plan import in_words
from tools.saving.progress import Progress, digest


@pytest.fixture
def made(tmp_path):
    """make(step): a checkpoint at made.path."""
    def make(step):
        write_torch(make.path, toy_payload(step))
        return step
    make.path = tmp_path / "TinySeek_Pre_final.pkl"
    return make


def test_what_was_made_is_skipped_only_while_it_is_there(tmp_path, made, capsys):
    def once(number):
        return Progress(tmp_path, "k").once("pre", "预训练", lambda: made(number), made=made.path)
    assert [once(1), once(2)] == [1, 1]
    made.path.unlink()
    assert once(3) == 3 and "重做" in capsys.readouterr().out
    made.path.write_bytes(made.path.read_bytes()[:-1])                              # damaged
    assert once(4) == 4


def test_what_hangs_on_a_file_is_done_again_when_it_changes(tmp_path, made):
    made(1)
    def score(number):
        return Progress(tmp_path, "k").once("score", "打分", lambda: number, needs=[made.path])
    assert [score(10), score(11)] == [10, 10]
    made(2)
    assert score(12) == 12


def test_a_file_that_somebody_else_made_is_taken_over_and_said(tmp_path, made, capsys):
    def once(number):
        return Progress(tmp_path, "k").once("pre", "预训练", lambda: made(number), made=made.path,
                                            taken_over=lambda path: read_checkpoint(path)["step"] * 100)
    assert once(1) == 1
    made(7)
    assert once(2) == 700 and "--resume none" in capsys.readouterr().out
    assert once(3) == 700


def test_killed_after_the_final_checkpoint_and_before_the_note(tmp_path, made):
    """The training had ended; only progress.json did not know. It is not done once more."""
    def killed():
        made(5)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        Progress(tmp_path, "k").once("pre", "预训练", killed, made=made.path, taken_over=lambda path: 0)
    taken = Progress(tmp_path, "k").once("pre", "预训练", lambda: made(6), made=made.path,
                                         taken_over=lambda path: read_checkpoint(path)["step"])
    assert taken == 5 and read_checkpoint(made.path)["step"] == 5


def test_a_file_from_before_the_first_start_is_not_taken_for_its_result(tmp_path, made):
    made(9)
    def work():
        assert read_checkpoint(made.path)["step"] == 9
        return made(1)
    assert Progress(tmp_path, "k").once("pre", "预训练", work, made=made.path, taken_over=lambda path: 0) == 1


def test_damaged_notes_are_no_reason_to_stop(tmp_path, capsys):
    Progress(tmp_path, "k").once("pre", "预训练", lambda: 1)
    (tmp_path / "progress.json").write_text("{")
    assert Progress(tmp_path, "k").once("pre", "预训练", lambda: 2) == 2 and "损坏" in capsys.readouterr().err


def test_numbers_that_are_none_become_null(tmp_path):
    assert finite({"a": [1.0, math.nan, (math.inf,)], 2: "x"}) == {"a": [1.0, None, [None]], "2": "x"}
    assert Progress(tmp_path, "k").once("pre", "预训练", lambda: {"loss": math.nan}) == {"loss": None}
    assert digest(tmp_path / "none.pkl") is None


# ---- the whole command ----

class House:
    """A folder with data of its own, in which run.py is run with a toy model."""

    def __init__(self, folder):
        self.folder = folder
        toy.write_rows(folder / "text.jsonl", toy.text_rows(60))
        toy.write_rows(folder / "talk.jsonl", toy.dialogue_rows(60))

    def words(self, *more):
        at = self.folder
        usual = [*TINY, *RUN, "--pre.json_data_path", at / "text.jsonl", "--sft.json_data_path", at / "talk.jsonl",
                 "--vocab_data_path",
                 at / "text.jsonl", "--vocab_trg_path", at / "out/vocab.json", "--out_dir", at / "out", "--log_dir",
                 at / "logs",
                 "--log_file", at / "log.txt", "--token_kind", "char"]
        return [str(word) for word in (*usual, *more)]

    def run(self, *more):
        run.main(self.words(*more))
        return json.loads((self.folder / "out/report.json").read_text(encoding="utf-8"))

    def file(self, label):
        return self.folder / f"out/TinySeek_{label}_final.pkl"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("house"))
    house.run()
    return house


@pytest.fixture
def house(ready, tmp_path):
    """The finished house, moved to another place under another name."""
    shutil.copytree(ready.folder, tmp_path / "新家")
    copied = House.__new__(House)
    copied.folder = tmp_path / "新家"
    return copied


def test_a_moved_folder_is_not_trained_again(house, capsys):
    before = {label: digest(house.file(label)) for label in ("Pre", "SFT")}
    house.run()
    said = capsys.readouterr().out
    assert said.count("上次已完成，跳过") == 4 and not list((house.folder / "out").glob("backup_*"))
    assert before == {label: digest(house.file(label)) for label in ("Pre", "SFT")}
    for word in ("report.html", "chat_agent/chat.py", "chat_agent/serve.py", str(house.file("SFT"))):
        assert word in said.split("报告：")[1]
    assert (house.folder / "out/report.html").exists()


def test_a_deleted_model_is_made_again(house, capsys):
    house.file("SFT").unlink()
    house.run()
    said = capsys.readouterr().out
    assert "重做" in said and "▶ 指令微调" in said and "▶ 预训练" not in said and house.file("SFT").exists()


def test_a_replaced_model_is_used_and_its_scores_are_its_own(house, capsys):
    """The user has trained on data of his own in the same folder."""
    from train_agent import sft_train
    old = json.loads((house.folder / "out/report.json").read_text(encoding="utf-8"))
    toy.write_rows(house.folder / "mine.jsonl", toy.dialogue_rows(60, 9))
    words = dict(zip(*[iter(house.words())] * 2)) | {"--json_data_path": str(house.folder / "mine.jsonl"),
                                                     "--max_steps": "5"}
    for key in ("--pre.json_data_path", "--sft.json_data_path"):
        words.pop(key)
    sft_train.main([word for pair in words.items() for word in pair])
    mine = digest(house.file("SFT"))
    capsys.readouterr()
    new = house.run()
    said = capsys.readouterr().out
    assert digest(house.file("SFT")) == mine and "后来换成了另一个模型" in said and "▶ 打分（指令微调" in said
    assert new["steps"]["sft"] == 5 and new["bits_per_char"]["sft"] != old["bits_per_char"]["sft"]
    assert new["bits_per_char"]["pre"] == old["bits_per_char"]["pre"]


def test_another_base_trains_what_stands_on_it_anew(house, capsys):
    shutil.copy(house.file("SFT"), house.file("Pre"))
    house.run()
    said = capsys.readouterr()
    assert "后来换成了另一个模型" in said.out and "▶ 指令微调" in said.out and "起点模型变了" in said.err
    assert list((house.folder / "out").glob("backup_*/TinySeek_SFT_final.pkl"))


def test_quick_says_first_that_it_cannot_talk_and_shows_one_line(house, capsys):
    house.run("--quick")
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("试跑") and said.count("小寻：") == 1


# ---- the plan and its times

PLAN = [("data", "准备数据", 10), ("pre", "预训练", 240), ("score", "打分", 50), ("sft", "指令微调", 400), ("report", "写报告", 20)]


def test_a_plan_tells_the_step_and_the_time_that_is_left(tmp_path, capsys):
    clock = [1000.0]
    def work(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)
    def progress():
        return Progress(tmp_path, "k", plan=PLAN, fixed=("pre", "sft"), clock=lambda: clock[0])
    one = progress()
    one.step("data", "准备数据", work(10))
    one.once("pre", "预训练", work(240))
    one.once("score", "打分", work(170))                   # 180 seconds for what was planned to take 60
    one.once("sft", "指令微调", work(400))
    one.step("report", "写报告", work(60))
    two = progress()                                      # what is done is not counted again
    two.step("data", "准备数据", work(0))
    two.once("pre", "预训练", work(0))
    one.once("else", "别的", work(1))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("▶")]
    assert said == ["▶ 准备数据　第 1/5 步，到全部做完约还要 12 分钟", "▶ 预训练　第 2/5 步，到全部做完约还要 12 分钟",
                    "▶ 打分　第 3/5 步，到全部做完约还要 8 分钟", "▶ 指令微调　第 4/5 步，到全部做完约还要 8 分钟",
                    "▶ 写报告　第 5/5 步，到全部做完约还要 60 秒", "▶ 准备数据　第 1/5 步，到全部做完约还要 30 秒", "▶ 别的"]


def test_a_plan_with_a_length_that_nobody_knows_tells_the_step_alone(tmp_path, capsys):
    Progress(tmp_path, "k", plan=[("a", "甲", None), ("b", "乙", 5)]).once("a", "甲", lambda: 1)
    assert capsys.readouterr().out == "▶ 甲　第 1/2 步\n"


def test_times_are_told_in_words():
    assert [in_words(s) for s in (0, 89, 90, 400, 5399, 9000)] == ["1 秒", "89 秒", "2 分钟", "7 分钟", "90 分钟", "2.5 小时"]


def test_the_plan_of_run_py_lasts_as_long_as_its_minutes():
    options = {name: {"max_steps": None} for name in run.SHARES}
    seconds = run.MINUTES * 60 - run.FIXED
    plan = run.plan_of(seconds, options, False, None)
    assert sum(step[2] for step in plan) == pytest.approx(run.MINUTES * 60)
    assert [step[1] for step in plan] == ["准备数据", "预训练", "打分（预训练后）", "指令微调", "打分（指令微调后）", "写报告"]
    assert [step[2] for step in run.plan_of(9, {**options, "sft": {"max_steps": 5}}, True, ["adapters"])][1] is None
    assert "选择门" in [step[1] for step in run.plan_of(9, options, True, ["adapters"])]


def test_a_machine_on_which_the_scores_will_be_lower_is_told_once_and_with_a_cure():
    options = run.ConfigManager(preset="tiny").stage("sft")
    assert run.usual_ones({"sft": options})["sft"] and not run.usual_ones({"sft": {**options, "d_model": 64}})["sft"]
    assert run.planned("sft", 1700, 400, False) == (1700, None)
    steps, told = run.planned("sft", 667, 400, False)
    assert steps == 667 and "约要 32 分钟" in told and "每分钟约 100 步" in told
    assert run.planned("sft", 4, 8, False) == (4, None)                       # too short to tell


def test_without_minutes_the_plan_of_work_is_the_same_on_every_machine_but_a_hopeless_one():
    whole = run.STEPS["sft"]
    assert run.planned("sft", 5000, 400, True) == (whole, None) == run.planned("sft", 1500, 400, True)
    steps, told = run.planned("sft", 667, 400, True)
    assert steps == whole and "每分钟约 100 步" in told and "约要 19 分钟" in told and "--minutes 12" in told
    steps, told = run.planned("sft", 100, 400, True)
    assert steps == 500 and "只走这些" in told
    assert 60 * sum(run.STEPS.values()) / run.USUAL_STEPS + run.FIXED <= 60 * run.MINUTES


def test_the_usual_pace_is_that_of_the_run_in_the_readme():
    told = (run.ROOT / "README.md").read_text(encoding="utf-8")
    pre, sft, minutes = re.search(r"预训练 ([\d,]+) 步、SFT ([\d,]+) 步，训练共 (\d+) 分钟", told).groups()
    pace = (int(pre.replace(",", "")) + int(sft.replace(",", ""))) / int(minutes)
    assert 0.75 * run.USUAL_STEPS < pace < 1.25 * run.USUAL_STEPS

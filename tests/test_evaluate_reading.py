"""Which rows and questions an evaluation reads, and what it says of those that it cannot."""
import numpy as np
import pytest

import toy
from chat_agent.evaluation import rows as eval_data
from chat_agent.evaluation.rows import Choice
from tools.errors import UserError
from tools.formats import BadLines
from train_agent.trainers.data.split import split_documents


def test_every_picks_the_rows_that_training_holds_out(tmp_path, vocab):
    rows = [{"text": f"第{i}"} for i in range(23)]
    paths = [str(toy.write_rows(tmp_path / f"{n}.jsonl", part)) for n, part in (("a", rows[:9]), ("b", rows[9:]))]

    class Cache:                        # what split_documents reads of a token cache
        rows = np.arange(23)

        def __len__(self):
            return 23

    held = split_documents(Cache(), 1 / 5)[1]
    assert [row.texts[0] for row in eval_data.scored_rows(paths, every=5)] == [f"第{i}" for i in held]
    assert [row.texts[0] for row in eval_data.scored_rows(rows, every=5)] == [f"第{i}" for i in held]


def test_bad_lines_are_counted_and_too_many_stop(tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text('{"text": "好"}\n' * 30 + "{坏\n" * 3, encoding="utf-8")
    bad = BadLines()
    assert len(eval_data.scored_rows(good, bad=bad)) == 30 and bad.count == 3
    good.write_text('{"text": "好"}\n' * 30 + "{坏\n" * 11, encoding="utf-8")
    with pytest.raises(UserError) as error:
        eval_data.scored_rows(good, bad=BadLines())
    assert error.value.code == 8


def test_files_are_told_apart(tmp_path):
    def kind(name, line):
        (tmp_path / name).write_text(line, encoding="utf-8")
        return eval_data.looks_like(tmp_path / name)
    assert kind("a.jsonl", '\ufeffnoise\n{"question": "", "A": "1", "B": "2", "answer": "A"}') == "choice"
    assert kind("b.jsonl", '{"conversations": [], "task": "sum"}') == "question"
    assert kind("c.jsonl", '{"text": ""}') == "rows" == kind("d.txt", "你好") == kind("e.jsonl", "x")
    assert kind("f.csv", "question,A,B,answer") == "choice"


def test_csv_and_jsonl_give_the_same_questions(tmp_path):
    rows = [{"question": "一加一，\n等于几？", "A": "二", "B": "三", "C": "四", "D": "五", "answer": "A", "subject": "数学"},
            {"question": "月亮？", "A": "方", "B": "圆", "C": "扁", "D": "尖", "answer": "B", "subject": ""}]
    (tmp_path / "q.csv").write_text('question,A,B,C,D,answer,subject\n"一加一，\n等于几？",二,三,四,五,A,数学\n月亮？,方,圆,扁,尖,B,\n',
                                    encoding="utf-8-sig")
    expected = [Choice("一加一，\n等于几？", list("二三四五"), 0, "数学"), Choice("月亮？", list("方圆扁尖"), 1, "")]
    assert eval_data.choice_rows(tmp_path
                                 / "q.csv") == expected == eval_data.choice_rows(
                                     toy.write_rows(tmp_path / "q.jsonl", rows))
    (tmp_path / "Q.csv").write_text(",Question,A,B,Answer\n0,月亮？,方,圆,B\n", encoding="utf-8")
    assert eval_data.choice_rows(tmp_path / "Q.csv") == [Choice("月亮？", ["方", "圆"], 1, "")]


def test_empty_cells_numbers_and_small_letters_are_fine(tmp_path):
    (tmp_path / "q.csv").write_text("question,A,B,C,D,E,answer\n二加二？,3,4,5,6,,b\n", encoding="utf-8")
    assert eval_data.choice_rows(tmp_path / "q.csv") == [Choice("二加二？", list("3456"), 1, "")]
    assert eval_data.choice_rows([{"question": "二加二？", "A": 3, "B": 4, "answer": "B"}]) == [
        Choice("二加二？", ["3", "4"], 1, "")]


def test_a_quote_that_never_ends_is_told(tmp_path):
    (tmp_path / "q.csv").write_text('question,A,B,answer\n"' + "字\n" * 140_000, encoding="utf-8")
    with pytest.raises(UserError, match="引号"):
        eval_data.choice_rows(tmp_path / "q.csv")


@pytest.mark.parametrize(
    "line", ['{"question": "问", "A": "甲", "answer": "A"}', '{"question": "问", "A": "甲", "B": "", "answer": "A"}',
                                  '{"question": "问", "A": "甲", "B": "乙", "answer": "C"}',
                                  '{"question": " ", "A": "甲", "B": "乙", "answer": "A"}',
                                  '{"question": "问", "A": "甲", "B": [3], "answer": "A"}', "[1]", "{",
                                  '{"question": "\\ud800", "A": "甲", "B": "乙", "answer": "A"}'])
def test_unusable_choices_are_bad_lines(line):
    assert isinstance(eval_data._choice_line(line.encode(), False), str)

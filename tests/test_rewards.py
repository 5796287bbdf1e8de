"""Rewards as data, and a user's own: what each gives, and that none of them can spoil a step."""
import json
import math

import pytest

from tools.errors import UserError
from train_agent.trainers.rewards import questions, safe_search
from train_agent.trainers.rewards.judge import LARGEST, Judge, weighted
from train_agent.trainers.rewards.named import NAMED, Unscored, form, last_number, regexes
from tools.config.keys import KEYS
from train_agent.trainers.rewards.policy_losses import advantages

NOTHING = {"reward_pattern": None, "reward_format": None, "reward_length": None}
# reward, row, reply -> score
CASES = [
    ("exact", {"answer": "九月"}, " 九月\n", 1), ("exact", {"answer": "九月"}, "九月。", 0),
    ("exact", {"answer": ["九月", "9月"]}, "9月", 1), ("exact", {"answer": 12}, "12", 1),
    ("contains", {"answer": "北京"}, "首都是北京。", 1), ("contains", {"answer": ["沪", "上海"]}, "北京", 0),
    ("number", {"answer": "12"}, "5+7=12", 1), ("number", {"answer": "12"}, "12 加 1 得 13", 0),
    ("number", {"answer": 1200}, "一共 1,200 元", 1), ("number", {"answer": "-3.5"}, "得 −３．５", 1),
    ("number", {"answer": "12"}, "十二", 0),
    ("regex", {"pattern": r"^\d+$"}, "123", 1), ("regex", {"pattern": r"^\d+$"}, "123 个", 0),
    ("format", {"format": "答案是{}。"}, "答案是12。", 1), ("format", {"format": "答案是{}。"}, "答案是。", 0),
    ("format", {"format": "{}，所以{}"}, "因为下雨，所以湿了", 1), ("format", {"format": "{}，所以{}"}, "，所以湿了", 0),
    ("format", {"format": "json"}, '{"a": 1}', 1), ("format", {"format": "json"}, "{", 0),
    ("format", {"format": "好"}, "好", 1),
    ("length", {"length": 4}, "四个字呢", 1), ("length", {"length": 4}, "这里有六个字", 0.5),
    ("length", {"length": 4}, "长" * 9, 0),
    ("repetition", {}, "一二三四五", 1), ("repetition", {}, "啊" * 10, 1 / 8), ("repetition", {}, "好", 1),
]


def judged(reward, reply, row, **settings):
    return Judge({**NOTHING, "reward": reward, **settings}).score([([], reply, row)])[0]


@pytest.mark.parametrize("name, row, reply, score", CASES)
def test_R1_named_rewards(name, row, reply, score):
    assert judged(name, reply, row).reward == pytest.approx(score)


def test_every_named_reward_is_tried():
    assert {name for name, *_ in CASES} == set(NAMED)


def test_what_the_row_does_not_say_the_configuration_may():
    assert judged("regex", "12", {}, reward_pattern=r"\d").reward == 1
    assert judged("regex", "12", {"pattern": "[a-z]"}, reward_pattern=r"\d").reward == 0
    assert judged("length", "abcd", {}, reward_length=4).reward == 1
    assert "reward_format" in judged("format", "x", {}).problem


def test_several_rewards_are_a_weighted_sum_and_the_first_one_is_success():
    one = judged(["exact", "length=0.5", "repetition=-1"], "九月", {"answer": "九月", "length": 1})
    assert one.reward == pytest.approx(1 + 0.5 * 0 - 1) and one.success
    other = judged(["exact", "length=0.5"], "十月", {"answer": "九月", "length": 2})
    assert other.reward == pytest.approx(0.5) and not other.success
    assert weighted("my.py:score=0.25") == ("my.py:score", 0.25)


def test_numbers_in_all_their_clothes():
    assert [last_number(t) for t in ("得 1,234.5 元", "２００", "-7", "没有", "3，4")] == [1234.5, 200, -7, None, 4]


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "(.*)*b$"])
def test_R1_a_pattern_that_never_ends_is_stopped_and_the_others_are_still_searched(pattern, monkeypatch):
    monkeypatch.setattr(safe_search, "_hopeless", set())
    searched = safe_search.found([("x", "xy"), (pattern, "a" * 60 + "!"), ("y", "x"), (pattern, "a")], seconds=3)
    assert searched == [True, None, False, None]


def test_a_pattern_that_is_none_costs_its_row_alone():
    bad, good = regexes([("a", {"pattern": "("}), ("a", {"pattern": "a"})], NOTHING)
    assert isinstance(bad, Unscored) and good == 1
    assert "没有 answer" in judged("exact", "x", {}).problem


OWN = '''
import sys
import helper
def score(conversation, reply, row):
    conversation.clear()
    if reply == "throw":
        raise ValueError("坏了\\n第二行")
    if reply == "exit":
        sys.exit(3)
    return {"nan": float("nan"), "none": None, "inf": float("inf"), "words": "高", "huge": 1e300,
            "list": [1.0] * 99, "yes": True}.get(reply, helper.half(len(reply)))
def two(conversation, reply):
    return 1
def more(conversation, reply, row, mood="good", *, scale=1):
    return 1
'''
WRONG = ("throw", "nan", "none", "inf", "words", "huge", "list", "exit")


def test_R1_a_function_of_the_users_own_and_all_it_can_do_wrong(tmp_path):
    (tmp_path / "helper.py").write_text("def half(n):\n    return n / 2\n")
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    judge = Judge({**NOTHING, "reward": [f"{tmp_path / 'mine.py'}:score", "length=0"]})
    talk = [{"role": "user", "content": "问"}]
    yes, four, *wrong = judge.score([(talk, reply, {"length": 9}) for reply in ("yes", "four", *WRONG)])
    assert yes.reward == 1 and yes.success and four.reward == 2 and [v.reward for v in wrong] == [None] * len(WRONG)
    assert "ValueError: 坏了" in wrong[0].problem and "第二行" not in wrong[0].problem
    for verdict, words in zip(wrong[2:], ("给出 None，不是数", "inf", "给出 '高'，不是数", "太大", "[1.0,", "SystemExit: 3")):
        assert words in verdict.problem and len(verdict.problem) < 150
    assert all(v.problem and not v.success for v in wrong) and talk                # the row itself is out of reach
    assert list(judge.identity()) == ["奖励函数"] and not Judge({**NOTHING, "reward": "exact"}).identity()


@pytest.mark.parametrize("reward, words", [
    ("exat", "是不是想写 exact"), ("nothing.py:score", "找不到奖励函数的文件"), ("exact=much", "权重不是数字"), ("exact=nan", "权重不是数字"),
    ("exact=1e300", "太大"), ("{}/empty.py:score", "没有函数 score"), ("{}/mine.py:two", "不能接三个参数"),
    ("{}/broken.py:score", "不能运行：ZeroDivisionError"), ("{}/leaves.py:score", "不能运行：SystemExit")])
def test_what_cannot_be_a_reward_is_said_at_once(tmp_path, reward, words):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("raise SystemExit")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    Judge({**NOTHING, "reward": f"{tmp_path / 'mine.py'}:more"})
    with pytest.raises(UserError) as told:
        Judge({**NOTHING, "reward": reward.format(tmp_path)})
    assert words in str(told.value) and told.value.code == 2


@pytest.mark.parametrize("kind", KEYS["rl_loss"].choices)
def test_the_largest_rewards_still_have_advantages(kind):
    spread = advantages(kind, [LARGEST * LARGEST, -LARGEST * LARGEST, 0.0])
    assert all(map(math.isfinite, spread)) and spread[0] > 0 > spread[1]


def test_to_say_nothing_is_right_nowhere():
    assert judged("exact", "", {"answer": ["", "九月"]}).reward == 0
    assert judged("contains", "十月", {"answer": ["", "九月"]}).reward == 0


def test_a_score_is_finite_or_none():
    assert math.isfinite(judged("repetition", "", {}).reward)
    assert form([], "答案是", {"format": "答案是{}"}, NOTHING) == 0


# ---------------------------------------------------------------- rows

TURN = {"role": "user", "content": "几点？"}


@pytest.mark.parametrize("row, answer", [
    ({"prompt": "几点？", "answer": "三点"}, "三点"), ({"prompt": "几点？", "answer": 3}, 3), ({"prompt": "几点？"}, None),
    ({"question": "几点？", "answer": ["三点", "3点"]}, ["三点", "3点"]),
    ({"conversations": [TURN], "answer": "三点"}, "三点"), ({"messages": [TURN]}, None),
    ({"conversations": [{"from": "human", "value": "几点？"}], "answer": "三点"}, "三点"),
    ({"conversations": [TURN, {"role": "assistant", "content": "三点"}]}, "三点"),
    ({"instruction": "几点？", "output": "三点"}, "三点"), ({"prompt": "几点？", "response": "三点"}, "三点"),
    ({"prompt": "几点？", "answer": " "}, None), ({"prompt": "几点？", "answer": [None, ""]}, None),
    ({"prompt": "几点？", "response": "三点", "answer": ""}, "三点")])
def test_rows_in_their_usual_shapes(row, answer):
    one = questions.read_question(json.dumps(row, ensure_ascii=False).encode(), None, 7)
    assert [m["content"] for m in one.talk] == ["几点？"] and one.row["answer"] == answer and one.number == 7


@pytest.mark.parametrize("row", [b"[1]", b"{", b'{"text": "\xe4\xb9\xa6"}', b'{"prompt": 3, "answer": "x"}', b"null",
                                 b'{"prompt": "x", "answer": {"a": 1}}', b'{"prompt": "x", "answer": [["a"]]}'])
def test_what_is_no_question_is_a_bad_line(row):
    assert isinstance(questions.read_question(row, None, 0), str)

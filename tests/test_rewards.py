"""Rewards as data, and a user's own: what each gives, and that none of them can spoil a step."""
import math

import pytest

from tools.errors import UserError
from train_agent.trainers.rewards import safe_search
from train_agent.trainers.rewards.judge import Judge, weighted
from train_agent.trainers.rewards.named import NAMED, Unscored, form, last_number, regexes

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
import helper
def score(conversation, reply, row):
    conversation.clear()
    if reply == "throw":
        raise ValueError("坏了\\n第二行")
    return {"nan": float("nan"), "none": None, "inf": float("inf")}.get(reply, helper.half(len(reply)))
'''


def test_R1_a_function_of_the_users_own_and_all_it_can_do_wrong(tmp_path):
    (tmp_path / "helper.py").write_text("def half(n):\n    return n / 2\n")
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    judge = Judge({**NOTHING, "reward": [f"{tmp_path / 'mine.py'}:score", "length=0"]})
    talk = [{"role": "user", "content": "问"}]
    found = judge.score([(talk, reply, {"length": 9}) for reply in ("four", "throw", "nan", "none", "inf")])
    assert found[0].reward == 2 and [v.reward for v in found[1:]] == [None] * 4
    assert "ValueError: 坏了" in found[1].problem and "第二行" not in found[1].problem
    assert all(v.problem and not v.success for v in found[1:]) and talk            # the row itself is out of reach
    assert list(judge.identity()) == ["奖励函数"] and not Judge({**NOTHING, "reward": "exact"}).identity()


@pytest.mark.parametrize("reward, words", [
    ("exat", "是不是想写 exact"), ("nothing.py:score", "找不到奖励函数的文件"), ("exact=much", "权重不是数字"), ("exact=nan", "权重不是数字"),
    ("{}/empty.py:score", "没有函数 score"), ("{}/broken.py:score", "不能运行：ZeroDivisionError")])
def test_what_cannot_be_a_reward_is_said_at_once(tmp_path, reward, words):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError) as told:
        Judge({**NOTHING, "reward": reward.format(tmp_path)})
    assert words in str(told.value) and told.value.code == 2


def test_a_score_is_finite_or_none():
    assert math.isfinite(judged("repetition", "", {}).reward)
    assert form([], "答案是", {"format": "答案是{}"}, NOTHING) == 0

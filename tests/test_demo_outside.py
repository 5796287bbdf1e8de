"""Outside the built-in world: what is sensible, what is held out, and the stranger's questions."""
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tools.demo import outside
from tools.demo.noise import FREE, OTHER
from tools.demo.outside_words import HELD, TRAINED
from tools.demo_data import OUTSIDE, build_demo, graded, refused, turns

ROOT = Path(__file__).resolve().parents[1]
STRANGER = [json.loads(line) for line in (ROOT / "tests/stranger.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world():
    return build_demo(0)


@pytest.fixture(scope="module")
def asked(world):
    return {turn["content"] for row in world["sft"] for turn in row["conversations"][::2]}


def test_200_questions_that_no_training_row_has(world, asked):
    rows = world["outside"]
    questions = [row["conversations"][0]["content"] for row in rows]
    assert len(rows) == OUTSIDE == 200 and len(set(questions)) == 200 and not asked & set(questions)
    for part in (TRAINED, HELD):
        assert all(part.values()) and part.keys() == HELD.keys()
    assert not any(set(TRAINED[slot]) & set(HELD[slot]) for slot in HELD)
    assert all(outside.right(row, row["conversations"][1]["content"]) for row in rows), "its own answer is sensible"
    kinds = Counter(row["conversations"][1]["content"] for row in rows if row.get("outside"))
    assert len(kinds) == len(outside.kinds()) + 2


def test_the_rule_for_a_sensible_reply():
    stranger = {"conversations": turns([("天气？", "不知道")]), "outside": True}
    for reply in ("天气我不知道，我会算加减法", "这个我没学过", "我没看懂。"):
        assert outside.right(stranger, reply), reply
    for reply in ("虫子", "今天晴", "", "三加五得八", "我不会" + "的" * 80):
        assert not outside.right(stranger, reply), reply
    remark = {"accept": ["别难过，我陪你说说话"], "conversations": turns([("我很难过", "别难过，我陪你说说话")])}
    assert graded(remark, "别难过，我陪你说说话。") and not graded(remark, "这个我没学过") and not graded(remark, "")
    assert refused(remark, "这个我没学过") and not refused(stranger, "这个我没学过") and not refused(remark, "虫子")
    total = {"accept": ["5"], "conversations": turns([("2+3", "5")])}
    assert graded(total, "2+3=5，得5") and not graded(total, "得15") and not graded(total, "5个半")
    assert graded({"hints": ["小寻"], "conversations": turns([("谁", "小寻")])},
                  "我叫小寻") and not outside.right({"hints": ["小寻"]}, "小舟")


def test_every_refusal_names_what_it_can_do():
    replies = {outside.reply_to(kind) for kind in [*outside.kinds(), *outside.UNREAD]}
    assert len(replies) == len(outside.kinds()) + 2 >= 20
    for reply in replies:
        assert outside.admits(reply) and reply.endswith(outside.SKILLS), reply


def test_all_kinds_are_drawn_and_filled_in():
    for style in (FREE, OTHER):
        rng = random.Random(6)
        for _ in range(3000):
            question, reply = outside.outside(rng, style)
            assert question and "{" not in question and reply, question
            said, warm = outside.remark(rng, style)
            assert said.strip() and "{" not in said and warm and not outside.admits(warm)


def test_remarks_are_many_and_written_once():
    asks = [ask for row in outside.remarks() for ask in row["asks"] + row["others"]]
    assert len(asks) == len(set(asks)) > 700 and all(row["others"] for row in outside.remarks())
    questions = [ask for _, one, other in outside.kinds().values() for ask in one + other]
    assert len(questions) == len(set(questions)) > 400


def test_the_strangers_questions_belong_to_nobody(asked):
    assert len(STRANGER) == 300 and all(row.keys() & {"accept", "hints", "outside"} for row in STRANGER)
    assert sum(row.get("outside", False) for row in STRANGER) > 90
    for row in STRANGER:
        assert graded(row, row["conversations"][-1]["content"]), row
        assert not graded(row, "虫子") and not graded(row, ""), row
    sources = [ROOT / "tools/demo_data.py", *(ROOT / "tools/demo").glob("*.py"), ROOT / "run.py"]
    assert not any("stranger" in path.read_text(encoding="utf-8").replace("stranger = ", "") for path in sources)
    met = [row for row in STRANGER if row["conversations"][-2]["content"] in asked and len(row["conversations"]) == 2]
    assert len(met) < 0.03 * len(STRANGER), [row["conversations"][0]["content"] for row in met]

"""The tool tasks of the built-in world: real tool rows, whose results are what the tools give, and their exam."""
import json
from collections import Counter

import pytest

from tools.acting.toolbox import toolbox
from chat_agent.evaluation.tool_use import tool_scores
from tools.demo.tool_tasks import AMOUNTS, ORDINARY_AMOUNTS, write_tools
from tools.formats import read_rows
from tools.template import parsed_call


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="module")
def talks(world):
    return {part: [row.messages for row in read_rows(str(world[part]))] for part in ("tools", "tools_eval")}


def calls_of(messages):
    return [call for m in messages for call in m.get("calls", ())]


def test_W4_the_results_in_the_rows_are_what_the_tools_give(world, talks):
    box, seen = toolbox(["all", str(world["prices"])]), 0
    for messages in talks["tools"][::7] + talks["tools_eval"]:
        offered = {one["function"]["name"] for one in json.loads(messages[0]["content"])}
        assert messages[0]["role"] == "tools" and offered <= set(box.tools)
        results = [m["content"] for m in messages if m["role"] == "tool"]
        assert [box.answer(call)[2] for call in calls_of(messages)] == results
        assert {parsed_call(call)["name"] for call in calls_of(messages)} <= offered
        seen += len(results)
        if results:
            assert results[-1].split()[0] in messages[-1]["content"]
    assert seen > 300


def test_W4_what_is_examined_is_in_no_training_row(talks):
    def contents(part):
        return {tuple(sorted(calls_of(m))) for m in talks[part] if calls_of(m)}
    assert not contents("tools") & contents("tools_eval") and len(contents("tools_eval")) > 200
    assert not {m[1]["content"] for m in talks["tools"]} & {m[1]["content"] for m in talks["tools_eval"] if calls_of(m)}
    assert len(talks["tools"]) == sum(a for a, _ in AMOUNTS.values()) + ORDINARY_AMOUNTS[0]


def test_W4_the_exam_counts_tools_arguments_answers_and_needless_calls(world, talks):
    right = {m[1]["content"]: m for m in talks["tools_eval"]}

    def speaker(change):
        def speak(conversations):
            return [change(dict(right[talk[1]["content"]][len(talk)])) for talk in conversations]
        return speak
    found = tool_scores(None, None, world, speak=speaker(lambda m: m))
    assert found["overall"] == found["ordinary"] == 1 and found["needless"] == 0 and found["n"] == 360
    assert all(set(one.values()) == {1.0} for one in found["by_task"].values())
    assert set(found["by_task"]) == set(AMOUNTS)
    mute = tool_scores(None, None, world, speak=lambda talks: [{"role": "assistant", "content": "1"} for _ in talks])
    assert mute["overall"] == 0 and all(one["tool"] == 0 for one in mute["by_task"].values())

    def wrong(message):                                                     # the tool is right, what it is told is not
        calls = [call.replace("1", "2") for call in message.get("calls", ())]
        return message | ({"calls": calls} if calls else {})
    found = tool_scores(None, None, world, speak=speaker(wrong))
    assert found["by_task"]["big_sum"]["tool"] == 1 and found["by_task"]["big_sum"]["arguments"] < 1
    again = {"role": "assistant", "content": "", "calls": ['{"name": "calculate", "arguments": {"expression": "1+1"}}']}
    keen = tool_scores(None, None, world, speak=lambda talks: [dict(again) for _ in talks], answers=(answers := []))
    assert keen["needless"] == 1 and keen["overall"] == 0 and len(answers) == 360
    assert Counter(one["task"] for one in answers)["ordinary"] == 120


def test_W4_evaluate_asks_the_tool_tasks(tmp_path, capsys, monkeypatch):
    from chat_agent import evaluate
    from toy_server import write_model
    monkeypatch.setattr(evaluate, "demo_home", lambda _: tmp_path)
    assert evaluate.main(["--model", write_model(tmp_path / "a.pkl"), "--task", "tools", "--every", "40"]) == 0
    out = capsys.readouterr().out
    assert "四五位数乘法" in out and "不该用而用了" in out
    found = json.loads(out.splitlines()[-1])["models"][0]["tools"]
    assert found["n"] == 9 and found["overall"] == 0

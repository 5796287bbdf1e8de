"""The tool tasks of the built-in world: real tool rows, whose results are what the tools give, and their exam."""
import json
import re
from collections import Counter

import pytest

from tools.acting.toolbox import toolbox
from chat_agent.evaluation.tool_use import tool_scores
from tools import demo_data
from tools.demo.hold import clean
from tools.demo.tool_tasks import AMOUNTS, ROOM, SIGNS, build_tools, size, write_tools
from tools.formats import read_rows
from tools.template import parsed_call, render
from tools.vocab import Vocab


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="module")
def talks(world):
    return {part: [row.messages for row in read_rows(str(world[part]))] 
            for part in ("tools", "tools_eval", "tools_phrasings")}


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
        for m, then in zip(messages, messages[1:]):                         # what a tool gave is what is answered
            if m["role"] == "tool" and then["role"] == "assistant" and not then.get("calls"):
                assert m["content"].split()[-1 if "出错" in m["content"] else 0].split("：")[-1] in then["content"]
    assert seen > 300


def test_W4_what_is_examined_is_in_no_training_row(talks):
    def contents(part):
        return {tuple(sorted(calls_of(m))) for m in talks[part] if calls_of(m)}
    assert not contents("tools") & contents("tools_eval") and len(contents("tools_eval")) > 200
    learned = {m["content"] for talk in talks["tools"] for m in talk if m["role"] == "user"}
    for part in ("tools_eval", "tools_phrasings"):
        assert not learned & {m[1]["content"] for m in talks[part] if calls_of(m)}
    assert sum(m["role"] == "user" for talk in talks["tools"] for m in talk) == sum(a for a, _ in AMOUNTS.values())


def test_W4_no_sum_that_the_world_holds_back_is_learned_from_a_calculator(talks):
    for call in [call for talk in talks["tools"] for call in calls_of(talk) if "expression" in call]:
        a, b = map(int, re.findall(r"\d+", parsed_call(call)["arguments"]["expression"]))
        assert clean(a, b, a + b), call


def test_W4_a_row_fits_into_a_row_of_the_training_and_costs_little(world, talks):
    texts = [text for talk in talks["tools"] for m in talk for text in [m["content"], *m.get("calls", ())]]
    vocab = Vocab.create_vocab(texts * 4, 5000, "char", texts=True, progress=False)     # the other data show them, too
    sizes = [len(render(talk, vocab)[0]) for talk in talks["tools"]]
    counted = [size(json.loads(line)) for line in open(world["tools"], encoding="utf-8")]
    assert max(counted) <= ROOM == 256 and sum(sizes) < 450_000
    assert all(real >= plain for real, plain in zip(sizes, counted))                  # strange characters take bytes
    assert max(sizes) <= ROOM + 16 and sum(real > ROOM for real in sizes) <= 0.005 * len(sizes)


def test_W4_the_default_data_hold_the_tool_rows(monkeypatch):
    monkeypatch.setattr(demo_data, "build_demo", lambda seed: {"sft": [{"conversations": []}] * 5, **build_tools(seed)})
    world = demo_data.whole_world(0)
    assert set(world) == {"sft", "tools_eval", "tools_phrasings", "prices"}
    assert len(world["sft"]) == 5 + len(build_tools(0)["tools"]) and world == demo_data.whole_world(0)


def test_W4_the_exam_counts_tools_arguments_answers_and_needless_calls(world, talks):
    right = {m[1]["content"]: m for part in ("tools_eval", "tools_phrasings") for m in talks[part]}

    def speaker(change):
        def speak(conversations):
            return [change(dict(right[talk[1]["content"]][len(talk)])) if talk[0]["role"] == "tools" else
                    {"role": "assistant", "content": "不会"} for talk in conversations]
        return speak
    found = tool_scores(None, None, world, speak=speaker(lambda m: m))
    assert found["overall"] == found["ordinary"] == found["phrasings"]["overall"] == 1 and found["n"] == 400
    assert found["needless"] == found["off"] == 0 and found["phrasings"]["n"] == 134
    assert all(set(one.values()) == {1.0} for one in found["by_task"].values())
    assert set(found["by_task"]) == {task for task, (_, asked) in AMOUNTS.items() if asked} - {"ordinary"}
    mute = tool_scores(None, None, world, speak=lambda talks: [{"role": "assistant", "content": "1"} for _ in talks])
    assert mute["overall"] == 0 and all(one["tool"] == 0 for one in mute["by_task"].values())

    def wrong(message):                                                     # the tool is right, what it is told is not
        calls = [call.replace("1", "2") for call in message.get("calls", ())]
        return message | ({"calls": calls} if calls else {})
    found = tool_scores(None, None, world, speak=speaker(wrong))
    assert found["by_task"]["big_sum"]["tool"] == 1 and found["by_task"]["big_sum"]["arguments"] < 1
    again = {"role": "assistant", "content": "", "calls": ['{"name": "calculate", "arguments": {"expression": "1+1"}}']}
    keen = tool_scores(None, None, world, speak=lambda talks: [dict(again) for _ in talks], answers=(answers := []))
    assert keen["needless"] == 1 and keen["overall"] == 0 and len(answers) == 534
    assert Counter(one["task"] for one in answers)["ordinary"] == 160


def test_W4_without_its_tools_a_model_is_asked_for_the_calculations_alone(world, talks):
    asked = []

    def speak(conversations):
        asked.append(conversations)
        return [{"role": "assistant", "content": "1"} for _ in conversations]
    tool_scores(None, None, world, speak=speak)
    assert all(len(talk) == 1 and talk[0]["role"] == "user" for talk in asked[-1])
    assert len(asked[-1]) == sum(AMOUNTS[task][1] for task in SIGNS)


def test_W4_evaluate_asks_the_tool_tasks(tmp_path, capsys, monkeypatch):
    from chat_agent import evaluate
    from toy_server import write_model
    monkeypatch.setattr(evaluate, "demo_home", lambda _: tmp_path)
    assert evaluate.main(["--model", write_model(tmp_path / "a.pkl"), "--task", "tools", "--every", "40"]) == 0
    out = capsys.readouterr().out
    assert "四五位数乘法" in out and "不该用而用了" in out
    found = json.loads(out.splitlines()[-1])["models"][0]["tools"]
    assert found["n"] == 10 and found["overall"] == 0

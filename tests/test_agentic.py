"""Reinforcement learning with tools: what is drawn is learned, what tools gave is context, and a resume stays exact."""
import json
from dataclasses import replace

import pytest
import torch

import toy
from model.sampling import RESERVED
from tools.acting.toolbox import toolbox
from tools.errors import UserError
from tools.formats import read_rows
from tools.template import compact, render_prompt
from train_agent.trainers import reward_tuning
from train_agent.trainers.dataset import Position
from train_agent.trainers.rewards.episodes import Episode, Speaker, calls_in
from train_agent.trainers.rewards.judge import Judge
from train_agent.trainers.rewards.questions import read_question
from train_agent.trainers.rewards.tool_result import calls_of

MINE = '''
def f(x: str) -> str:
    if x == "茶":
        raise ValueError("没有茶")
    return x + "了"
'''
TOOL = {"function": {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}, "required": ["x"]}}}


def row(thing, calls=True):
    """A question that needs the tool, or one that it only stands beside."""
    call = {"function": {"name": "f", "arguments": {"x": thing}}}
    first = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": thing + "了"}]
    return {"tools": [TOOL], "messages": [{"role": "user", "content": f"{thing}{'呢' if calls else '。'}"},
                                          *(first if calls else ()),
                                          {"role": "assistant", "content": thing if calls else "书"}]}


def rows(count=24):
    return [row(toy.THINGS[i % 8], i % 3 > 0) for i in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    folder = tmp_path_factory.mktemp("agentic")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    toy.train(toy.toy_options(folder, vocab, "sft", rows(64), name="base", logging_steps=None, max_epochs=9,
                              max_len=256, batch_size=1, max_steps=70, init_lr=1e-2), "sft")
    return folder


def options_of(world, vocab, **keys):
    values = {"pretraining_model_path": str(world / "out/base/TinySeek_SFT_final.pkl"), "batch_size": 2, "max_len": 320,
              "group_size": 4, "max_new_tokens": 60, "reward": ["tool_result", "length=0.01"], "reward_length": 1,
              "max_epochs": 9, "max_steps": 4, "tools": [str(world / "mine.py")], **keys}
    return toy.toy_options(world, vocab, "rl", rows(), **values)


@pytest.fixture(scope="module")
def played(world, vocab):
    """A stage, its player, and the groups of two steps."""
    stage = toy.build_stage(options_of(world, vocab, name="played"), "rl")
    player = stage.player()
    groups = [g for n in range(3) for g in player.play(stage.model, stage.train.batch(Position(0, 0, n)))]
    return stage, player, groups


# ---------------------------------------------------------------- what is played

def test_R1_a_called_tool_answers_and_the_model_goes_on(played, vocab):
    acted = [e for g in played[2] for e in g.replies if e.used]
    assert acted and any(e.finish == "stop" and e.messages[-1]["role"] == "assistant" for e in acted)
    for episode in acted:
        for call, result in episode.used:
            said = json.loads(call)["arguments"]["x"]
            assert json.loads(call)["name"] == "f"
            assert result in (said + "了", "出错：ValueError：没有茶", None) or result.endswith("…")
        assert episode.before[-1]["role"] == "tool" or not episode.said


def test_R1_results_are_context_and_everything_that_was_drawn_is_a_target(played, vocab):
    stage, player, groups = played
    for group in groups:
        group.advantages = [1.0] * len(group.replies)
    batch = player.joined(stage.train.batch(Position(0, 0, 0)), groups)
    episodes = [e for g in groups for e in g.replies]
    labels = batch.labels[0]
    assert labels[labels >= 0].tolist() == [e.ids[p] for e in episodes for p in e.places]
    assert batch.targets_2 == int((labels >= 0).sum()) and batch.targets_1 == len(episodes)
    for episode in episodes:
        context = [i for place, i in enumerate(episode.ids) if place not in set(episode.places)]
        results = [m for m in episode.messages if m["role"] == "tool"]
        assert context.count(vocab.id("Tool")) >= len(results) - (episode.finish == "length")
        assert vocab.id("Tool") not in [episode.ids[p] for p in episode.places]
        assert context[:len(render_prompt(episode.messages[:episode.own], vocab))] == render_prompt(
            episode.messages[:episode.own], vocab)


def test_R1_the_trainers_log_p_is_the_samplers_also_where_calls_are_held_to_a_schema(played):
    stage, player, groups = played
    for group in groups:
        group.advantages = [1.0] * len(group.replies)
    batch = player.joined(stage.train.batch(Position(0, 0, 0)), groups)
    learned = batch.labels[0] >= 0
    held = learned & (batch.mask > 0)
    assert held.sum() > 20 and len(batch.masks) > 5
    now = player.log_p(stage.model.eval(), batch)
    assert now[learned].tolist() == pytest.approx(batch.sampled[learned].tolist(), abs=2e-5)
    # without the masks they are others: the form is what makes a call's ids likely
    free = player.log_p(stage.model, replace(batch, mask=torch.zeros_like(batch.mask)))
    assert float((now - free)[held].abs().max()) > 0.1


def test_an_id_that_had_to_come_teaches_nothing(played):
    stage, player, groups = played
    groups[0].advantages = [1.0] * len(groups[0].replies)
    batch = player.joined(stage.train.batch(Position(0, 0, 0)), groups[:1])
    alone = batch.masks.sum(-1) == 1
    forced = (batch.labels[0] >= 0) & alone[batch.mask]
    only = replace(batch)
    only.labels = torch.where(forced, batch.labels[0], -100)[None]
    if not forced.any():
        only.masks = torch.zeros_like(batch.masks).scatter(1, torch.zeros(len(batch.masks), 1, dtype=torch.long), True)
        only.labels = torch.where(batch.labels >= 0, 0, -100)
    only.places = (only.labels[0] >= 0).nonzero()[:, 0]
    stage.model.zero_grad()
    log_p = player.log_p(stage.model, only)
    log_p.sum().backward()
    assert float(log_p.detach().abs().max()) == 0
    assert all(p.grad is None or not p.grad.any() for p in stage.model.parameters())


def test_reserved_ids_that_are_never_drawn_are_never_in_the_trainers_sum(played, vocab):
    speaker = played[1].speaker
    allowed = set(speaker.free.nonzero()[:, 0].tolist())
    marks = {vocab.id("[call]"), vocab.id("[/call]"), vocab.id("<|im_end|>")}
    assert allowed & set(range(RESERVED)) == marks and allowed >= set(range(RESERVED, len(vocab)))


def test_the_context_ends_an_episode(played, vocab):
    stage, _, _ = played
    speaker = Speaker(vocab, ("calls",), stage.model.config.vocab_size, 10 ** 6, toolbox(["calculate"]))
    call = compact({"name": "calculate", "arguments": {"expression": "1+1"}})
    episode = Episode([{"role": "user", "content": "算"}, {"role": "assistant", "content": "", "calls": [call]}], [1, 9],
                      own=1, finish="stop")
    assert speaker._answered(episode, 60) and episode.messages[-1] == {"role": "tool", "content": "2"}
    assert calls_in(episode.messages)[0][1] == "2" and episode.failures == 0
    speaker.context = len(episode.ids) + 20
    episode.messages.append(episode.messages[1])
    assert not speaker._answered(episode, 60) and episode.finish == "length" and not episode.said


# ---------------------------------------------------------------- the run

def test_R2_a_run_with_tools_that_is_killed_while_it_samples_is_the_one_never_stopped(world, vocab, monkeypatch):
    keys = {"save_steps": 1, "max_steps": 3}
    whole = toy.train(options_of(world, vocab, name="whole", **keys), "rl")
    assert whole.exit == 0 and all(step["gap"] < 2e-5 for step in whole.history)
    assert any(step["called"] for step in whole.history) and all("failed" in step for step in whole.history)
    usual, calls = Speaker._answered, []

    def dies(self, episode, room):
        calls.append(1)
        if len(calls) == 20:
            raise toy.Killed
        return usual(self, episode, room)
    monkeypatch.setattr(Speaker, "_answered", dies)
    assert toy.train(options_of(world, vocab, name="cut", **keys), "rl").exit == -9
    monkeypatch.setattr(Speaker, "_answered", usual)
    again = toy.train(options_of(world, vocab, name="cut", **keys), "rl")
    assert again.exit == 0 and toy.same_tensors(dict(whole.model.state_dict()), dict(again.model.state_dict()))


def test_changed_tools_are_another_run_and_tools_that_are_missing_are_named(world, vocab, tmp_path):
    before = toy.build_stage(options_of(world, vocab, name="same"), "rl").identity
    mine = tmp_path / "mine.py"
    mine.write_text(MINE + "\n# otherwise\n", encoding="utf-8")
    assert toy.build_stage(options_of(world, vocab, name="same", tools=[str(mine)]), "rl").identity != before
    for keys, words in (({"tools": "calculate"}, "f，--tools 里没有"), ({"write_pairs": "x.jsonl"}, "write_pairs"),
                        ({"tools": "nothing"}, "没有 nothing 这个工具")):
        with pytest.raises(UserError, match=words) as told:
            toy.build_stage(options_of(world, vocab, name="wrong", **keys), "rl")
        assert told.value.code == 2


def test_a_model_that_has_learned_no_calls_is_refused(world, vocab):
    toy.train(toy.toy_options(world, vocab, "sft", 4, name="plain", max_steps=1), "sft")
    with pytest.raises(UserError, match="没有学过用工具"):
        toy.build_stage(options_of(world, vocab, pretraining_model_path=str(
            world / "out/plain/TinySeek_SFT_final.pkl")), "rl")


def test_the_best_replies_with_their_calls_become_sft_rows(world, vocab, tmp_path):
    best = tmp_path / "best.jsonl"
    (world / "kind.py").write_text("def score(conversation, reply, row):\n    return float(bool(reply))\n")
    counts = reward_tuning.reward_train(options_of(world, vocab, name="best", write_best=str(best), max_steps=2,
                                                   reward=f"{world / 'kind.py'}:score"))
    found = list(read_rows(str(best)))
    assert len(found) == counts["best"] > 0 and all(r.messages[0]["role"] == "tools" for r in found)


# ---------------------------------------------------------------- the reward

CALL = compact({"name": "f", "arguments": {"x": "船"}})
OTHER = compact({"name": "f", "arguments": {"x": "书"}})
WANTED = {"answer": "船", "calls": [{"name": "f", "arguments": {"x": "船"}, "result": "船了"}]}


def judged(used, reply, data):
    """used: [(call, result)] -> the reward."""
    talk = [{"role": "user", "content": "船呢"}]
    for call, result in used:
        talk += [{"role": "assistant", "content": "", "calls": [call]}, {"role": "tool", "content": result}]
    settings = {"reward": "tool_result", "reward_needless": 0.25, "reward_failed": 0.5}
    return Judge(settings).score([(talk, reply, data)])[0]


@pytest.mark.parametrize("used, reply, data, reward", [
    ([(CALL, "船了")], "船", WANTED, 1), ([(CALL, "船了")], "书", WANTED, 0), ([], "船", WANTED, -0.5),
    ([(OTHER, "船了")], "船", WANTED, 1),                           # another way to the wanted result
    ([(OTHER, "书了")], "船", WANTED, 0),                           # it tried: not needless, only wrong
    ([(OTHER, "书了"), (OTHER, "书了")], "船", WANTED, -0.25), ([(CALL, "船了"), (OTHER, "书了")], "船", WANTED, 0.75),
    ([(CALL, "船了"), (CALL, "船了")], "船", WANTED, 0.75), ([(CALL, "出错：坏了"), (CALL, "船了")], "船", WANTED, 0.5),
    ([(CALL, "出错：坏了")], "船", {**WANTED, "failed": 2}, -2), ([], "船", {**WANTED, "failed": 2}, -2),
    ([], "船", {"answer": "船"}, 1),
    ([(CALL, "船了")], "船", {"answer": "船", "needless": 0.1}, 0.9),
    ([(CALL, "船了")], "船", {"answer": "船", "calls": [{"name": "f"}]}, 1)], ids=str)
def test_R1_tool_result_wants_the_answer_behind_the_right_calls_alone(used, reply, data, reward):
    verdict = judged(used, reply, data)
    assert verdict.reward == pytest.approx(reward) and verdict.success == (reward == 1)


def test_what_a_row_called_is_what_it_wants(world):
    box = toolbox([str(world / "mine.py")])
    one = read_question(json.dumps(row("船"), ensure_ascii=False).encode(), None, 0, box)
    assert [m["role"] for m in one.talk] == ["tools", "user"] and one.row["answer"] == "船"
    assert one.row["calls"] == [{"name": "f", "arguments": {"x": "船"}, "result": "船了"}]
    plain = read_question('{"prompt": "船呢", "answer": "船", "calls": [{"name": "f"}]}'.encode(), None, 0, box)
    assert plain.row["calls"] == [{"name": "f"}] and plain.talk[0] == {"role": "tools", "content": box.offered}
    assert calls_of([{"role": "assistant", "content": "", "calls": [CALL]}]) == [{"name": "f", "arguments": {"x": "船"}}]

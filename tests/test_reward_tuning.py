"""Reinforcement learning as a stage of the one loop: what is sampled, learned, counted, kept for a resume, and said."""
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ranks
import toy
from model.generate import generate_replies
from tools.config.keys import KEYS
from tools.errors import UserError
from train_agent import rl_train
from train_agent.trainers import reward_tuning
from train_agent.trainers.dataset import Position
from train_agent.trainers.preflight import preflight
from train_agent.trainers.rewards import play

ROUNDING = 1e-5         # of float32, between a cache and one pass over the whole document
OWN = '''
import json, pathlib
def shares(conversation, reply, row):
    return reply.count("月") + reply.count("书") - 0.1 * len(reply)
def same(conversation, reply, row):
    return 0.5
def throws(conversation, reply, row):
    if row["answer"] == "茶":
        raise KeyError("没有茶")
    return len(reply) % 3
def watched(conversation, reply, row):
    with open(pathlib.Path(__file__).with_name("seen.txt"), "a", encoding="utf-8") as out:
        print(row["answer"], file=out)
    return len(reply) % 3
'''


def asked(count=24):
    return [{"prompt": f"{toy.THINGS[i % 8]}呢？", "answer": toy.THINGS[(i + 1) % 8] if i % 2 else "月亮"}
            for i in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    folder = tmp_path_factory.mktemp("rl")
    toy.train(toy.toy_options(folder, vocab, "sft", 40, name="base", logging_steps=None, max_epochs=3), "sft")
    (folder / "mine.py").write_text(OWN, encoding="utf-8")
    return folder


def rl_options(world, vocab, rows=None, function="shares", **keys):
    values = {"pretraining_model_path": str(world / "out/base/TinySeek_SFT_final.pkl"), "batch_size": 4,
              "group_size": 4, "max_new_tokens": 12, "reward": f"{world / 'mine.py'}:{function}", "max_epochs": 9,
              "max_steps": 6, **keys}
    return toy.toy_options(world, vocab, "rl", rows or asked(), **values)


def final(options):
    folder = Path(options["out_dir"], options["name"])
    return toy.read_pair(folder / "TinySeek_RL_final.pkl")


def made_batches(stage, number=0):
    """The ReplyBatch of one micro-batch, made by a Player of its own."""
    player = stage.player()
    batch = stage.train.batch(Position(0, 0, number))
    groups = player.play(stage.model, batch)
    return player, groups, player.joined(batch, groups)


def test_R1_a_model_that_counts_is_trained_by_rewards(world, vocab):
    toy.train(toy.toy_options(world, vocab, "sft", 40, name="counts", counted=3, use_fc2=False, max_epochs=1,
                              logging_steps=None), "sft")
    stage = toy.build_stage(rl_options(world, vocab, name="rl_counts",
                                       pretraining_model_path=str(world / "out/counts/TinySeek_SFT_final.pkl")), "rl")
    batch, there = (made := made_batches(stage)[2]), made.labels.flatten() >= 0
    found = reward_tuning.read(stage.model, batch)[0]
    assert there.any() and torch.allclose(found[there], batch.sampled[there], atol=1e-4)


# ---------------------------------------------------------------- sampling

def test_sampled_replies_carry_their_log_probabilities_and_equal_prompts_are_read_once(vocab):
    model = toy.model_for(vocab)
    prompts = [[1, 9, 300], [1, 9, 300], [1, 9, 301, 302], [1, 9, 300]]
    how = {"seed": "x", "temperature": 1.0, "guard": False, "reserved": 0, "stop_ids": (1, 2)}
    replies = generate_replies(model, prompts, 12, scored=True, **how)
    alone = [generate_replies(model, [p], 12, seed=None, temperature=0.0)[0].ids for p in prompts]
    assert alone[0] == alone[1] == alone[3] == generate_replies(model, prompts, 12)[1].ids
    for prompt, reply in zip(prompts, replies):
        assert len(reply.log_p) == len(reply.ids) + (reply.finish == "stop")
        with torch.no_grad():
            logits = model.eval()(torch.tensor([[*prompt, *reply.ids]])).logits_1[0].log_softmax(-1)
        expected = [float(logits[len(prompt) - 1 + i, one]) for i, one in enumerate(reply.ids)]
        assert reply.log_p[:len(reply.ids)] == pytest.approx(expected, abs=1e-9)


def test_the_numbers_of_a_sample_follow_from_its_place_alone(world, vocab):
    stage = toy.build_stage(rl_options(world, vocab, name="place"), "rl")
    one, again, other = (made_batches(stage, number)[1] for number in (0, 0, 1))
    assert [g.texts for g in one] == [g.texts for g in again] != [g.texts for g in other]
    assert len({text for g in one for text in g.texts}) > 4


@pytest.mark.parametrize("kind", KEYS["rl_loss"].choices)
def test_R1_one_update_on_fresh_replies_has_ratio_1_and_clips_nothing(world, vocab, kind):
    loop = toy.train(rl_options(world, vocab, name=f"fresh_{kind}", rl_loss=kind, max_steps=3), "rl")
    for step in loop.history:
        assert step["ratio"] == pytest.approx(1, abs=1e-9) and step["clip_share"] == 0
        assert 0 <= step["gap"] < ROUNDING
    assert loop.exit == 0


def test_several_updates_on_the_same_replies_move_the_ratio(world, vocab):
    options = rl_options(world, vocab, name="updates", rl_updates=3, init_lr=0.02, max_steps=2)
    loop = toy.train(options, "rl")
    assert loop.step == 2 and abs(loop.history[0]["ratio"] - 1) > 1e-3 and loop.history[0]["clip_share"] > 0
    once = toy.train({**options, "rl_updates": 1, "name": "once"}, "rl")
    assert once.history[0]["clip_share"] == 0


# ---------------------------------------------------------------- the batch and its loss

def test_only_groups_with_different_rewards_are_learned_from(world, vocab):
    stage = toy.build_stage(rl_options(world, vocab, name="groups"), "rl")
    player, groups, _ = made_batches(stage)
    for verdict in groups[1].verdicts:
        verdict.reward = 0.5
    groups[1].advantages = None
    batch = player.joined(stage.train.batch(Position(0, 0, 0)), groups)
    useful = [g for g in groups if g.advantages]
    assert batch.targets_1 == 4 * len(useful) == 4 * (len(groups) - batch.told["skipped"])
    assert batch.targets_2 == int((batch.labels >= 0).sum()) == sum(len(r.log_p) for g in useful for r in g.replies)
    # each label is the reply's own id, and its log p is the sampler's
    ids = [i for g in useful for r in g.replies for i in (r.ids[p] for p in r.places)]
    log_p = [p for g in useful for r in g.replies for p in r.log_p]
    learned = batch.labels[0] >= 0
    assert batch.labels[0][learned].tolist() == ids
    assert batch.sampled[learned].tolist() == pytest.approx(log_p, abs=1e-6)
    assert (batch.advantage[~learned] == 0).all() and (batch.size[learned] > 0).all()
    assert player.log_p(stage.model.eval(), batch)[learned].tolist() == pytest.approx(log_p, abs=ROUNDING)


def test_a_step_without_anything_to_learn_changes_no_weight_and_ends_the_run_in_time(world, vocab, capsys):
    options = rl_options(world, vocab, function="same", name="same", max_steps=60, optimizer="adamw", weight_decay=0.5)
    stage = toy.build_stage(options, "rl")
    before = {k: v.clone() for k, v in stage.weights().items()}
    loop = toy.run_loop(stage)
    assert loop.step == play.STUCK and toy.same_tensors(before, dict(stage.model.state_dict()))
    assert "提前停止" in capsys.readouterr().out and "得分都一样" in toy.events(options, "early_stop")[0]["text"]
    assert final(options)[1]["finished"]


def test_a_reward_that_throws_is_named_with_its_row_and_poisons_nothing(world, vocab, capsys):
    rows = [{"prompt": f"{t}呢？", "answer": t} for t in toy.THINGS] * 2
    loop = toy.train(rl_options(world, vocab, rows, "throws", name="throws"), "rl")
    assert loop.exit == 0 and all(math.isfinite(s["loss"]) for s in loop.history)
    assert any(0 < s["unscored"] <= 1 for s in loop.history)
    said = capsys.readouterr().out
    assert "第 5 行" in said or "第 13 行" in said
    assert "KeyError" in said and "没有茶" in said


def test_the_learned_reward_rises(world, vocab):
    loop = toy.train(rl_options(world, vocab, name="rises", max_steps=40, init_lr=5e-3, group_size=8), "rl")
    reward = [step["reward"] for step in loop.history]
    assert sum(reward[-8:]) / 8 > sum(reward[:8]) / 8 + 0.3, reward


def test_kl_holds_the_model_near_its_start_and_only_it_keeps_a_second_model(world, vocab):
    def run(name, kl):
        loop = toy.train(rl_options(world, vocab, name=name, kl=kl, max_steps=15, init_lr=5e-3), "rl")
        return loop
    free, held = run("free", 0.0), run("held", 3.0)
    assert free.player.reference is None and "kl" not in free.history[-1]
    assert held.history[0]["kl"] == pytest.approx(0, abs=1e-6) and held.history[-1]["kl"] > 0
    base = toy.read_checkpoint(world / "out/base/TinySeek_SFT_final.pkl")["weights"]

    def moved(loop):
        return sum(float((v - base[k]).abs().sum()) for k, v in loop.model.state_dict().items())
    assert moved(held) < moved(free)


def test_the_entropy_bonus_is_the_entropy_of_each_token_weighted_as_its_loss(world, vocab):
    stage = toy.build_stage(rl_options(world, vocab, name="entropy"), "rl")
    player, _, batch = made_batches(stage)
    totals = {"targets_1": batch.targets_1, "targets_2": batch.targets_2, "tokens": batch.tokens}
    options = {**stage.options, "examine": None}
    plain = reward_tuning.reward_loss(options, stage.model.eval(), batch, totals)[0]
    more = reward_tuning.reward_loss({**options, "entropy_bonus": 0.5}, stage.model, batch, totals)[0]
    with torch.no_grad():
        out = stage.model(batch.ids, positions=batch.positions, layout=batch.layout, return_logits=True)
    log_p = out.logits_1[0][:, player.speaker.free].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    learned = batch.labels[0] >= 0
    expected = float((entropy / batch.size.clamp_min(1) * learned).sum()) / batch.targets_1
    assert float(plain - more) == pytest.approx(0.5 * expected, rel=1e-4)


def test_the_curriculum_asks_again_what_was_neither_solved_nor_hopeless(world, vocab):
    stage = toy.build_stage(rl_options(world, vocab, name="curriculum", curriculum=0.5), "rl")
    player, batch = stage.player(), stage.train.batch(Position(0, 0, 1))
    assert player.chosen(batch) == batch.items
    player.open = {17: True, 3: True, **{item: False for item in batch.items}}
    assert {17, 3} <= set(player.chosen(batch)) <= {17, 3, *batch.items}
    assert player.chosen(batch) == player.chosen(batch)
    player.options = {**player.options, "curriculum": 0.0}
    assert player.chosen(batch) == batch.items
    kept = player.state()
    player.open = {}
    player.restore(json.loads(json.dumps(kept)))
    assert player.state() == kept


def test_the_curriculum_leaves_no_question_for_good(world, vocab):
    stage = toy.build_stage(rl_options(world, vocab, name="for good", curriculum=0.25, eval_share=0.0), "rl")
    player, count, asked = stage.player(), len(stage.train.questions), []
    for epoch in range(20):
        for place in (Position(epoch, 0, n) for n in range(stage.train.batches_in(epoch, 0))):
            batch = stage.train.batch(place)
            items = player.chosen(batch)
            assert len(set(items)) == len(items)                       # no question twice in one batch
            asked.append(items)
            player.remember([batch], [[play.Group(None, i, [], [], [1.0] if i < 6 else None) for i in items]])
    assert {i for items in asked[len(asked) // 2:] for i in items} == set(range(count))
    assert sum(i < 6 for items in asked for i in items) > 1.3 * 6 / count * sum(map(len, asked))


# ---------------------------------------------------------------- held-out questions

def test_R1_rewards_never_see_a_held_out_question(world, vocab):
    rows = [{"prompt": f"{toy.THINGS[i % 8]}呢？", "answer": f"第{i}行"} for i in range(20)]
    loop = toy.train(rl_options(world, vocab, rows, "watched", name="held", eval_share=0.25, eval_steps=2,
                                curriculum=0.5), "rl")
    seen = set((world / "seen.txt").read_text(encoding="utf-8").split())
    held = {f"第{i}行" for i in range(0, 20, 4)}
    assert seen and not seen & held and {q.row["answer"] for q in loop.stage.held["held"].questions} == held
    assert loop.held["eval_accuracy"] + loop.held["eval_loss"] == pytest.approx(1)


def test_the_exam_is_greedy_and_exact(world, vocab):
    stage = toy.build_stage(rl_options(world, vocab, name="exam", eval_share=0.5), "rl")
    data = stage.held["held"]
    first = data.questions[0]
    said = vocab.decode(generate_replies(stage.model, [first.ids], 12)[0].ids)
    first.row["answer"] = [said + " ", "别的"]
    exam = reward_tuning.Exam([first], stage.player().speaker, 12)
    batch = replace(data.batch(Position()), items=[0], targets_1=1)
    assert reward_tuning.examined(exam, stage.model, batch)[1]["accuracy"] == 1
    first.row["answer"] = "不会这样说"
    assert reward_tuning.examined(exam, stage.model, batch)[1]["ce_1"] == 1


# ---------------------------------------------------------------- a resume

def interrupted(world, vocab, name, where, monkeypatch, **keys):
    """Killed at `where`, then run to the end; -> (weights, state) beside those of a run that was left alone."""
    keys = {"save_steps": 2, "eval_share": 0.2, "eval_steps": 3, "max_steps": 7, **keys}
    whole = rl_options(world, vocab, name=f"{name}_whole", **keys)
    toy.train(whole, "rl")
    options = rl_options(world, vocab, name=f"{name}_cut", **keys)
    if where == "sampling":
        usual, calls = play.Player.play, []

        def dies(self, model, batch):
            groups = usual(self, model, batch)
            calls.append(1)
            if len(calls) == 4:
                raise toy.Killed
            return groups
        monkeypatch.setattr(play.Player, "play", dies)
        assert toy.train(options, "rl").exit == -9
        monkeypatch.setattr(play.Player, "play", usual)
    else:
        toy.train(options, "rl", **where)
    assert toy.train(options, "rl").exit == 0
    found = []
    for one in (whole, options):
        payload, state = final(one)
        for key in ("seconds", "run_id", "fingerprint"):
            state.pop(key)
        found.append((payload["weights"], state))
    return found


@pytest.mark.parametrize("where", ["sampling", {"kill_after": 3}, {"stop_after": 3}], ids=str)
def test_R2_a_resumed_run_is_the_one_never_stopped(world, vocab, monkeypatch, where):
    one, other = interrupted(world, vocab, f"resume_{str(where)[2:6]}", where, monkeypatch, kl=0.1, curriculum=0.5)
    assert toy.same_tensors(one, other)


def test_R2_several_updates_are_resumed_too(world, vocab, monkeypatch):
    one, other = interrupted(world, vocab, "resume_updates", {"kill_after": 5}, monkeypatch, rl_updates=2,
                             accumulation_steps=2, rl_loss="cispo")
    assert toy.same_tensors(one, other)


def test_a_changed_reward_function_is_another_run(world, vocab, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN, encoding="utf-8")
    options = rl_options(world, vocab, name="changed", reward=f"{mine}:shares")
    before = toy.build_stage(options, "rl").identity
    mine.write_text(OWN + "\n# otherwise\n", encoding="utf-8")
    assert toy.build_stage(options, "rl").identity != before


# ---------------------------------------------------------------- several processes

@pytest.mark.skipif(not torch.distributed.is_available() or not sys.platform.startswith("linux"),
                    reason="gloo on Linux")
def test_groups_are_divided_among_processes_and_the_steps_are_those_of_one(world, vocab, tmp_path):
    keys = {"optimizer": "sgd", "max_steps": 3, "resume": "none", "batch_size": 2, "kl": 0.1, "curriculum": 0.5}
    options = rl_options(world, vocab, name="two", **keys)
    jobs = ranks.launch(tmp_path, [{"options": options, "stage": "rl"}])
    stage = toy.build_stage({**options, "name": "one", "accumulation_steps": 2}, "rl")
    stage.model.double()
    alone = toy.run_loop(stage)
    together = jobs[0][0]
    for mine, theirs in zip(alone.history, together["history"]):
        for key in ("loss", "reward", "success", "length", "skipped", "policy_entropy", "grad_norm"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-6, abs=1e-8), key
    for name, weight in stage.model.named_parameters():
        assert torch.allclose(together["weights"][name].double(), weight.detach(), atol=1e-6), name


# ---------------------------------------------------------------- the log

def test_the_log_tells_what_was_asked_answered_and_earned(world, vocab):
    options = rl_options(world, vocab, name="told", eval_steps=3, eval_share=0.2)
    toy.train(options, "rl")
    samples = [e for e in toy.events(options, "sample") if "rewards" in e]
    assert {e["step"] for e in samples} == {1, 4} and len(samples) == 6
    assert all(len(e["rewards"]) == 4 == len(e["reply"].split("\n")) for e in samples)
    line = [row for row in toy.log_lines(options) if "event" not in row][-1]
    assert {"reward", "success", "solved", "hopeless", "skipped", "length", "cut", "policy_entropy", "clip_share",
            "gap", "replies_s"} <= line.keys()
    text = Path(options["log_file"]).read_text(encoding="utf-8")
    assert "Reward: " in text and "Success: " in text


# ---------------------------------------------------------------- rows

def test_rows_without_an_answer_are_never_held_out(world, vocab):
    rows = [{"prompt": "书呢？", **({"answer": "书"} if i % 3 else {})} for i in range(30)]
    stage = toy.build_stage(rl_options(world, vocab, rows, name="unanswered", eval_share=0.5), "rl")
    assert all(q.answered for q in stage.held["held"].questions)
    assert stage.notes["rows"]["train"] + stage.notes["rows"]["held"] == 30


def test_questions_that_no_reward_can_judge_are_left_out_and_told(world, vocab, capsys):
    rows = [{"prompt": f"{t}呢？", **({"answer": t} if i % 3 else {})} for i, t in enumerate(toy.THINGS * 2)]
    stage = toy.build_stage(rl_options(world, vocab, rows, name="some", reward="exact"), "rl")
    assert all(q.answered for q in stage.train.questions) and stage.notes["rows"]["skipped"] == 6
    assert "6 题没法打分" in (said := capsys.readouterr().err) and "第 1 行，exact：这一行没有 answer" in said
    stage = toy.build_stage(rl_options(world, vocab, rows, name="all"), "rl")    # one of the user may look elsewhere
    assert len(stage.train.questions) == 16


# ---------------------------------------------------------------- what users get wrong

@pytest.mark.parametrize("keys, words, code", [
    ({"reward": "exat"}, "是不是想写 exact", 2), ({"rl_loss": "reinforce", "rl_updates": 2}, "rl_updates", 2),
    ({"reward": "regex"}, "没有 pattern", 2), ({"reward": "regex", "reward_pattern": "("}, "不是正则表达式", 2),
    ({"write_best": "a.jsonl", "write_pairs": "./a.jsonl"}, "同一个文件", 2), ({"write_best": "a.json"}, ".jsonl", 2),
    ({"write_pairs": "no such folder/a.jsonl"}, "文件夹不存在", 2), ({"max_new_tokens": 40}, "没有地方放提问", 2),
    ({"max_new_tokens": 38}, "max_len", 8),
    ({"find_lr": True}, "--find_lr", 2), ({"pretraining_model_path": None}, "会对话的模型", 2),
    ({"pretraining_model_path": "nothing.pkl"}, "找不到", 3), ({"replay_share": 0.5}, "replay_share", 2)])
def test_what_makes_no_sense_is_said_before_anything_is_done(world, vocab, keys, words, code):
    with pytest.raises(UserError) as told:
        reward_tuning.reward_train(rl_options(world, vocab, name="wrong", **keys))
    assert words in str(told.value) and told.value.code == code


def test_the_preflight_says_what_the_model_earns(world, vocab):
    said = []
    stage = toy.build_stage(rl_options(world, vocab, name="ahead", reward="contains"), "rl")
    preflight(stage, seconds=0, say=said.append)
    assert any("取样的回答答对" in line for line in said) and any("个提问" in line for line in said)
    stage, said = toy.build_stage(rl_options(world, vocab, name="ahead2", function="throws"), "rl"), []
    preflight(stage, seconds=0, say=said.append)
    assert any("⚠" in line and "没有给" in line and "打分" in line for line in said)


def test_the_script_trains_and_draws(world, vocab, capsys):
    options = rl_options(world, vocab, name="script")
    words = []
    for key in ("out_dir", "log_dir", "log_file", "vocab_trg_path", "json_data_path", "pretraining_model_path",
                "max_len", "batch_size", "max_new_tokens", "group_size"):
        words += [f"--{key}", str(options[key])]
    rl_train.main([*words, "--name", "script", "--max_steps", "2", "--reward", "contains", "length=0.1",
                   "--reward_length", "5", "--device", "cpu", "--token_kind", "char"])
    assert (world / "logs/rl_rewards.png").exists() and (world / "out/script/TinySeek_RL_final.pkl").exists()
    assert "rl_rewards.png" in capsys.readouterr().err

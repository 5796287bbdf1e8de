"""General rows learned beside the replies: what they add to the loss, what they are for, and that a resume and several
processes see the same."""
import json
import sys

import pytest
import torch

import ranks
import toy
# ruff: noqa: F811
from test_reward_tuning import interrupted, made_batches, rl_options, world  # noqa: F401  a fixture, asked for by name
from tools.errors import UserError
from train_agent.trainers import reward_tuning
from train_agent.trainers.dataset import Position
from train_agent.trainers.losses import next_tokens_loss


@pytest.fixture(scope="module")
def general(world):
    """The dialogues that the start model has learned, which the questions do not ask for."""
    rows = [{"conversations": [{"role": "user", "content": f"{a}和{b}"}, {"role": "assistant", "content": f"{b}和{a}"}]}
            for a in toy.THINGS[:6] for b in toy.THINGS[:6]]
    path = world / "general.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"replay_weight": 0.5, "replay_data_path": str(path)}


def test_the_loss_of_general_rows_is_added_with_its_weight(world, vocab, general):
    stage = toy.build_stage(rl_options(world, vocab, name="added", **general), "rl")
    player, _, batch = made_batches(stage)
    assert torch.equal(batch.general.ids, player.general.batch(batch.position).ids)
    others = {tuple(player.general.batch(Position(0, 0, n)).ids.flatten().tolist()) for n in range(5)}
    assert len(others) > 1, "other rows beside other questions"
    totals = {"targets_1": batch.targets_1, "targets_2": batch.targets_2, "tokens": 2 * batch.tokens}
    options, model = {**stage.options, "examine": None}, stage.model.eval()
    with_it, sums = reward_tuning.reward_loss(options, model, batch, totals)
    alone = {k: getattr(batch.general, k) for k in ("targets_1", "targets_2", "tokens")}
    expected = 0.5 * float(next_tokens_loss(model, batch.general, alone)[0])
    batch.general = None
    without, _ = reward_tuning.reward_loss(options, model, batch, totals)
    assert float(with_it - without) == pytest.approx(expected / 2, rel=1e-5)
    assert float(sums["replay"]) == pytest.approx(expected * batch.tokens, rel=1e-5) and expected > 0


def test_what_is_not_asked_for_is_unlearned_less(world, vocab, general):
    def loss_after(name, **keys):
        loop = toy.train(rl_options(world, vocab, name=name, max_steps=30, init_lr=3e-3, **keys), "rl")
        data = reward_tuning.general_rows({**loop.stage.options, **general}, vocab).data
        with torch.no_grad():
            return sum(float(reward_tuning.replayed(loop.model.eval(), data.batch(p))) for p in data.places())
    assert loss_after("kept", **general) < 0.8 * loss_after("unlearned")


def test_R2_with_general_rows_a_resumed_run_is_the_one_never_stopped(world, vocab, monkeypatch, general):
    one, other = interrupted(world, vocab, "resume_general", {"kill_after": 3}, monkeypatch, **general)
    assert toy.same_tensors(one, other)


def test_other_general_rows_are_another_run(world, vocab, general, tmp_path):
    options = rl_options(world, vocab, name="other_rows", **general)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(open(general["replay_data_path"], encoding="utf-8").readlines()[:20]), encoding="utf-8")
    before, after = (toy.build_stage({**options, "replay_data_path": p}, "rl").identity
                     for p in (general["replay_data_path"], str(fewer)))
    assert before != after


@pytest.mark.parametrize("path, words, code", [(None, "--replay_data_path", 2), ("nothing.jsonl", "不存在", 2)])
def test_general_rows_that_are_not_there_are_said(world, vocab, path, words, code):
    options = {**rl_options(world, vocab, name="none", replay_weight=0.5), "replay_data_path": path}
    with pytest.raises(UserError) as told:
        toy.build_stage(options, "rl")
    assert words in str(told.value) and told.value.code == code


@pytest.mark.skipif(not torch.distributed.is_available() or not sys.platform.startswith("linux"),
                    reason="gloo on Linux")
def test_several_processes_learn_the_general_rows_of_one(world, vocab, general, tmp_path):
    keys = {"optimizer": "sgd", "max_steps": 3, "resume": "none", "batch_size": 2, **general}
    options = rl_options(world, vocab, name="two_general", **keys)
    jobs = ranks.launch(tmp_path, [{"options": options, "stage": "rl"}])
    stage = toy.build_stage({**options, "name": "one_general", "accumulation_steps": 2}, "rl")
    stage.model.double()
    alone = toy.run_loop(stage)
    for mine, theirs in zip(alone.history, jobs[0][0]["history"], strict=True):
        for key in ("loss", "replay", "reward", "grad_norm"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-6, abs=1e-8), key
    for name, weight in stage.model.named_parameters():
        assert torch.allclose(jobs[0][0]["weights"][name].double(), weight.detach(), atol=1e-6), name

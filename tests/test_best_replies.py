"""Sampling without learning: rows for SFT and pairs for DPO from a model's own replies."""
from pathlib import Path

import pytest

import toy
from test_reward_tuning import rl_options, world  # noqa: F401
from tools import formats
from tools.errors import UserError
from train_agent.trainers import reward_tuning
from train_agent.trainers.rewards.best import write_replies


def test_the_best_replies_become_sft_rows_and_pairs_for_dpo(world, vocab, tmp_path, capsys):
    best, pairs = tmp_path / "best.jsonl", tmp_path / "pairs.jsonl"
    options = rl_options(world, vocab, name="best", write_best=str(best), write_pairs=str(pairs), max_steps=3,
                         reward="contains", group_size=6, rows=[{"prompt": "书呢？", "answer": "。"}] * 12)
    counts = reward_tuning.reward_train(options)
    rows = list(formats.read_rows(str(best)))
    assert len(rows) == counts["best"] > 0 and counts["asked"] == 12
    assert all("。" in row.messages[-1]["content"] and row.messages[0]["content"] == "书呢？" for row in rows)
    assert all(row.kind == "preference" and "。" in row.chosen and "。" not in row.rejected
               for row in formats.read_rows(str(pairs)))
    assert "sft_train.py" in capsys.readouterr().err and not Path(options["out_dir"], "best").exists()


def test_what_was_asked_for_is_kept_when_it_is_stopped_and_no_file_is_written_over(world, vocab, tmp_path, capsys):
    best, pairs = tmp_path / "best.jsonl", tmp_path / "pairs.jsonl"
    keys = {"write_best": str(best), "write_pairs": str(pairs), "group_size": 6, "name": "stopped", "max_steps": 2,
            "rows": [{"prompt": "书呢？", "answer": "。"}] * 12}
    stage = toy.build_stage(rl_options(world, vocab, reward="contains", **keys), "rl")
    player, played = stage.player(), []
    stage.player = lambda: player

    def stopped_at_the_second(model, batch, play=player.play):
        if played:
            raise SystemExit(143)
        played.extend(play(model, batch))
        return played
    player.play = stopped_at_the_second
    with pytest.raises(SystemExit):
        write_replies(stage)
    kept = best.read_text(encoding="utf-8")
    assert kept.count("\n") == sum(g.successes > 0 for g in played) > 0 and "问了 4 题" in capsys.readouterr().err
    with pytest.raises(UserError, match="不会覆盖"):
        reward_tuning.reward_train(rl_options(world, vocab, **keys))
    assert best.read_text(encoding="utf-8") == kept


def test_without_a_row_no_file_is_written_and_why_is_said(world, vocab, tmp_path, capsys):
    best, pairs = tmp_path / "best.jsonl", tmp_path / "pairs.jsonl"
    reward_tuning.reward_train(rl_options(world, vocab, function="same", name="none", write_best=str(best),
                                          write_pairs=str(pairs), max_steps=1))
    said = capsys.readouterr().err
    assert "没有一个回答得满分" in said and "没有一题的回答有好有坏" in said
    assert not best.exists() and not pairs.exists()

"""The bench of a chatbot from real text, and the sixty everyday prompts: what is held out, counted and judged."""
import json

import pytest

import toy
from bench import everyday, real_chat

TALK = [["你好", "你好呀"], ["苹果呢", "苹果在桌子上面放着呢"], ["书呢", "书被风吹走了真可惜啊"]]


def rows(talks):
    return [{"conversations": [{"role": role, "content": text} for role, text in zip(("user", "assistant"), one)]}
            for one in talks]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("held, scored", [(0, {0, 50}), (25, {25, 75})])
def test_the_rows_that_are_scored_are_never_trained_on(held, scored, tmp_path):
    data = toy.write_rows(tmp_path / "all.jsonl", [{"text": str(i)} for i in range(100)])
    (tmp_path / "work").mkdir()
    train, own = (lines(path) for path in real_chat.split(data, held, tmp_path / "work"))
    assert {int(row["text"]) for row in own} == scored
    assert {int(row["text"]) for row in train} == set(range(100)) - scored - {0, 50}


def test_clean_rows_share_no_run_with_what_was_trained_on(tmp_path):
    trained = toy.write_rows(tmp_path / "train.jsonl", rows(TALK))
    near, far = ["笔呢", "铅笔苹果在桌子上面放着呢"], ["船呢", "小船在河边慢慢漂着呢你看"]
    held = toy.write_rows(tmp_path / "held.jsonl", rows([near, far]))
    assert lines(real_chat.clean(held, trained)) == rows([far])


def test_shuffled_replies_are_the_same_replies_elsewhere(tmp_path):
    made = lines(real_chat.shuffled(toy.write_rows(tmp_path / "train.jsonl", rows(TALK))))
    asked, said = ([row["conversations"][i]["content"] for row in made] for i in (0, 1))
    assert sorted(asked) == sorted(one[0] for one in TALK) and sorted(said) == sorted(one[1] for one in TALK)
    assert not any([a, b] in TALK for a, b in zip(asked, said))


def test_only_short_dialogues(tmp_path):
    data = toy.write_rows(tmp_path / "train.jsonl", rows(TALK))
    assert lines(real_chat.short(data, 6)) == rows(TALK[:1])


def test_there_are_sixty_prompts_and_none_stands_twice():
    talks = everyday.talks(everyday.PROMPTS)
    assert sorted(map(len, talks)) == [1] * 30 + [3] * 10
    assert len({turn for turns in talks for turn in turns}) == 60


def test_empty_looping_and_copied_replies_are_counted():
    said = [{"reply": text, "finish": finish} for text, finish in (
        ("", "stop"), ("。！", "stop"), ("我也是的" * 3, "stop"), ("天气很好", "loop"), ("苹果在桌子上面放着呢", "stop"))]
    found = everyday.counts(said, {"苹果在桌子上面放着呢", "你好呀"})
    assert (found["empty"], found["looping"], found["copied"]) == (0.4, 0.4, 0.2)
    assert everyday.distinct_2(["一二一二", ""]) == pytest.approx(2 / 3)


def test_rows_of_every_shape_tell_their_replies(tmp_path):
    """Calls and results of tools, thoughts and rows that cannot be read are no replies and end nothing."""
    call = {"role": "assistant", "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    made = [{"messages": [{"role": "user", "content": "一加一"}, call, {"role": "tool", "content": "2"},
                          {"role": "assistant", "content": "是二"}], "tools": [{"name": "add"}]},
            {"prompt": "你好", "chosen": "你好呀", "rejected": "走开"}, {"instruction": "说好", "output": "好"}, {"x": 1},
            *rows(TALK)]
    path = toy.write_rows(tmp_path / "rows.jsonl", made)
    replies = {"是二", "你好呀", "好"} | {said for _, said in TALK}
    assert everyday.replies_of(path) == set(real_chat.replies(path)) == replies
    assert len(lines(real_chat.short(path, 8))) == 4
    mixed = [m["content"] for row in lines(real_chat.shuffled(path)) for m in row["conversations"]]
    assert "一加一" in mixed and replies <= set(mixed)


def test_judgements_are_averaged_and_their_agreement_told(tmp_path):
    rows_judged = [{"fluent": [2, 2], "fits": [1, 0]}, {"fluent": [1, 2], "fits": [0, 0]}]
    path = toy.write_rows(tmp_path / "judged.jsonl", rows_judged)
    assert everyday.judged(path) == {"judged": 2, "fluent": 1.75, "fluent_agreement": 0.5, "fits": 0.25,
                                     "fits_agreement": 0.5}


@pytest.mark.slow
def test_a_small_one_is_trained_and_scored(tmp_path, capsys):
    text = toy.write_rows(tmp_path / "text.jsonl", toy.text_rows(120))
    talk = toy.write_rows(tmp_path / "talk.jsonl", toy.dialogue_rows(120))
    real_chat.main(["--text", str(text), "--dialogue", str(talk), "--preset", "chat", "--pre_seconds", "2",
                    "--sft_seconds", "2", "--d_model", "32", "--n_head", "2", "--max_len", "64"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["bits_per_char"]["replies"] < 9 and found["pre"]["steps"] and found["sft"]["steps"]

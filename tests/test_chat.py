"""The terminal chat: whole characters, whole turns, commands, and replies that nothing was taken out of."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toy
from chat_agent import chat, session
from chat_agent.load import context_of, load
from chat_agent.session import Session, fitting, turns, within
from tools.acting.spoken import Characters
from chat_agent.terminal import kept
from chat_agent.terminal.shown import readable, show
from model import TinySeek
from tools.checkpoint import write_torch
from tools.errors import UserError
from tools.template import render_prompt
from tools.vocab import FIRST_BYTE

ROOT = Path(__file__).resolve().parents[1]


def save_model(path, vocab, stage="SFT", seed=0, **changes):
    torch.manual_seed(seed)
    config = toy.toy_config(init_std=0.2)
    model = TinySeek(type(config)(**{**config.to_dict(), "vocab_size": len(vocab)}))
    payload = {"format": 1, "kind": "model", "stage": stage, "config": model.config.to_dict(), "vocab_hash": vocab.hash,
               "vocab": vocab.state(), "weights": model.state_dict(), "adapter": None, "base": None, "step": 1,
               "metrics": {},
               "run": {"max_len": 48}}
    write_torch(path, {**payload, **changes})
    return str(path)


@pytest.fixture
def saved(ram_path, vocab):
    return lambda name="toy.pkl", **options: save_model(ram_path / name, vocab, **options)


def say(user, assistant=None):
    return [{"role": "user", "content": user}] + ([] if assistant is None
                                                  else [{"role": "assistant", "content": assistant}])


# ---------------------------------------------------------------- characters

@pytest.mark.parametrize("text", ["苹果😀é\U0001F468\u200d\U0001F469 a", "龘", "\ufffd", ""])
def test_streamed_pieces_are_whole_characters(vocab, text):
    """Every id alone, also where a character is spread over four byte tokens."""
    for ids in (vocab.encode(text), [FIRST_BYTE + b for b in text.encode()]):
        characters = Characters(vocab)
        pieces = [characters.feed([i]) for i in ids] + [characters.end()]
        assert "".join(pieces) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
        assert [c for piece in pieces for c in piece] == list(text)


def test_bytes_that_form_no_character_show_as_one_and_lose_nothing_around():
    vocab = toy.toy_vocab()
    half = [FIRST_BYTE + b for b in "好".encode()[:2]]
    characters = Characters(vocab)
    assert "".join(characters.feed([i]) for i in half + vocab.encode("a") + half) + characters.end() == "\ufffda\ufffd"


# ---------------------------------------------------------------- history

def test_oldest_whole_turns_go_first(vocab):
    messages = [{"role": "system", "content": "小船"}] + say("苹果", "茶") + say("书", "面包") + say("月亮")
    whole = len(render_prompt(messages, vocab))
    for limit in range(1, whole + 2):
        kept, dropped = fitting(messages, vocab, limit)
        assert dropped == (len(messages) - len(kept)) // 2
        size = len(render_prompt(kept, vocab))
        assert kept[0] == messages[0] and kept[-1] == messages[-1]                     # system and the question stay
        assert kept[1:] in (messages[1:], messages[3:], messages[5:])
        assert size <= limit or len(kept) == 2
        longer = {len(messages): None, 4: messages[1:], 2: messages[3:]}[len(kept)]
        # and no more went than had to
        assert longer is None or len(render_prompt(messages[:1] + longer, vocab)) > limit


def test_turns_begin_with_a_user():
    system, parts = turns(
        [{"role": "system", "content": "s"}, {"role": "assistant", "content": "hi"}, *say("a", "b"), *say("c")])
    assert [m["content"] for m in system] == ["s"] and [[m["content"] for m in p] for p in parts] == [["hi"],
        ["a", "b"], ["c"]]


def test_a_session_remembers_and_forgets(vocab, saved):
    model, vocab, payload = load(saved())
    talk = Session(model, vocab, context_of(model, payload), system="小船")
    first = "".join(talk.ask("苹果呢？", 12))
    assert talk.messages == [{"role": "system", "content": "小船"}, *say("苹果呢？", first)] and len(talk.reply.ids) <= 12
    # greedy: the same again, in its place
    assert "".join(talk.retry(12)) == first and len(talk.messages) == 3
    list(talk.ask("书呢？", 12))
    assert len(talk.messages) == 5
    talk.clear()
    assert talk.messages == [{"role": "system", "content": "小船"}]
    with pytest.raises(UserError):
        list(talk.retry(12))


def test_the_prompt_leaves_room_for_the_reply(saved):
    model, vocab, payload = load(saved())
    talk = Session(model, vocab, context_of(model, payload))
    assert talk.context == 48
    for i in range(9):
        list(talk.ask("苹果在河边", 10))
        assert len(talk.prompt(10)) <= 38
        assert vocab.decode(talk.prompt(10)).count("苹果在河边") >= 1
    assert len(talk.messages) == 18                                                    # all is kept, not all is sent


def test_an_interrupted_reply_is_kept_as_far_as_it_went(saved):
    model, vocab, _ = load(saved())
    talk = Session(model, vocab)
    pieces = talk.ask("苹果呢？", 50)
    said = next(pieces) + next(pieces)
    pieces.close()
    assert talk.messages == say("苹果呢？", said)


def test_a_question_without_a_single_character_of_reply_waits_for_retry(saved, monkeypatch):
    model, vocab, _ = load(saved())
    talk = Session(model, vocab)
    monkeypatch.setattr(session, "stream", lambda *a, **k: iter(()))
    assert list(talk.ask("苹果呢？")) == [] and [m["role"] for m in talk.messages] == ["user"]
    monkeypatch.undo()
    said = "".join(talk.retry(5))
    assert talk.messages == say("苹果呢？", said)


def test_a_question_that_cannot_be_asked_leaves_no_trace(vocab):
    model = toy.toy_model(dtype=torch.float32, position="learned", max_position=20).eval()
    talk = Session(model, vocab, 20)
    for bad in ("x" * 30, "\ud800"):
        with pytest.raises(UserError):
            list(talk.ask(bad))
        assert talk.messages == []


def test_a_pretrained_model_goes_on_with_the_text(vocab, saved):
    model, vocab, _ = load(saved(stage="Pre"))
    talk = Session(model, vocab, completes=True)
    talk.messages = say("苹果")
    assert talk.prompt(10) == [vocab.id("<|im_end|>"), *vocab.encode("苹果")]


def test_nothing_is_ever_deleted_from_a_reply(vocab, monkeypatch, saved):
    """Generation stops on ids. What looks like an end, a role or a loop of words in the text is text."""
    model, vocab, _ = load(saved())
    text = "User：<|im_end|>Assistant：\nUser: 好好好 [PAD]</s>"
    monkeypatch.setattr(session, "stream", lambda *a, **k: iter(vocab.encode(text)))
    talk = Session(model, vocab)
    assert "".join(talk.ask("?")) == text and talk.messages[-1]["content"] == text


# ---------------------------------------------------------------- the script

def answer(capsys, *words):
    code = chat.main([str(w) for w in words])
    return code, *capsys.readouterr()


def test_prompt_prints_the_reply_alone(saved, tmp_path):
    """As a process, from another folder: stdout holds the reply and a line end."""
    path = saved()
    run = subprocess.run(
        [sys.executable, ROOT / "chat_agent" / "chat.py", "--model", path, "--prompt", "苹果呢？", "--max_new_tokens", "7",
                          "--device", "cpu"], capture_output=True, cwd=tmp_path, env=None, encoding="utf-8")
    model, vocab, payload = load(path)
    expected = "".join(Session(model, vocab, 48).ask("苹果呢？", 7))
    assert run.returncode == 0 and run.stdout == expected + "\n" and "Traceback" not in run.stderr


def test_options_reach_the_model(saved, capsys):
    path = saved()

    def reply(*words):
        return answer(capsys, "--model", path, "--prompt", "苹果", "--max_new_tokens", 9, *words)[1]

    assert reply() == reply("--no_speculate") == reply("--seed", 3)
    assert reply("--temperature", 1, "--seed", 3) == reply("--temperature", 1, "--seed", 3) != reply("--temperature",
        1, "--seed", 4)
    assert reply("--temperature", 1, "--top_k", 1, "--seed", 3) == reply() != reply("--repetition_penalty", 3)
    assert len(reply("--max_new_tokens", 2)) < len(reply())


def test_several_models_side_by_side(saved, capsys):
    code, out, _ = answer(capsys, "--model", saved("TinySeek_SFT_final.pkl"), "--model", saved("b.pkl", seed=1),
                          "--prompt", "苹果",
                          "--max_new_tokens", 5)
    assert code == 0 and out.startswith("【SFT_final】\n") and "\n【b】\n" in out


def converse(monkeypatch, capsys, lines, *words):
    given = iter(lines)

    def read(_):
        line = next(given, None)
        if line is None:
            raise EOFError
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    return answer(capsys, *words)


def test_commands(saved, capsys, monkeypatch, tmp_path):
    place = tmp_path / "对话.jsonl"
    lines = ["/stats", "苹果呢？", "/retry", f"/save {place}", "/clear", "/retry", f"/load {place}",
             f"/save {tmp_path / 'again.jsonl'}", "/help", "/nonsense",
             "/load", "/load /nowhere", "", "/quit", "unread"]
    code, out, err = converse(monkeypatch, capsys, lines, "--model", saved(), "--max_new_tokens", 6, "--seed", 1)
    assert out.count("这次用 0.8") == 1                                  # not said where there is nothing to answer again
    assert code == 0 and "词元/秒" in out and "还没有可以重答的问题" in out and "没有 /nonsense 这个命令" in out and "读不了 /nowhere" in out
    assert "\n  /set 名字 数  改取样" in out and "\n  /save 文件    把对话" in out     # in columns, whatever is wide
    row = json.loads(place.read_text(encoding="utf-8"))
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] and row["messages"][0]["content"] == "苹果呢？"
    assert place.read_bytes() == (tmp_path / "again.jsonl").read_bytes()


# ---------------------------------------------------------------- what is said and set in a conversation

@pytest.mark.parametrize("word", ["/quit", "/exit", "/bye", "退出", "/退出", "exit", "QUIT", "退出。"])
def test_words_that_leave(saved, capsys, monkeypatch, word):
    code, out, _ = converse(monkeypatch, capsys, [word, "苹果"], "--model", saved(), "--max_new_tokens", 3)
    assert code == 0 and "小寻" not in out


def test_settings_are_changed_shown_and_checked(saved, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(session, "stream", lambda *a, **how: seen.append(how) or iter(()))
    lines = ["/set temperature 0.7", "茶", "/set top_p=0", "/set top_p 7", "/set nonsense 1", "/set temperature x",
             "/set seed 3", "茶", "/set"]
    out = converse(monkeypatch, capsys, lines, "--model", saved())[1]
    assert (seen[0]["temperature"], seen[0]["top_p"], seen[0]["seed"]) == (0.7, 1.0, None)
    assert (seen[1]["temperature"], seen[1]["top_p"], seen[1]["seed"]) == (0.7, 0.0, 3)
    assert "top_p 应在 0 到 1 之间，而不是 7.0" in out and "不能设 nonsense" in out and "应是数" in out and out.rstrip().endswith(
        "seed 3")


def test_a_slip_of_the_pen_is_understood_or_gets_one_line(saved, capsys, monkeypatch):
    lines = ["/STATS", "／stats", "/claer", "/set temprature 1", "/ set", "/quit"]
    out = converse(monkeypatch, capsys, lines, "--model", saved())[1]
    assert "每次回答后显示统计。" in out and "不再显示统计。" in out and "是不是想写 /clear" in out and "是不是想写 temperature" in out
    assert "命令：" not in out                                           # nobody asked for the whole list


def test_system_and_model_can_change_on_the_way(saved, capsys, monkeypatch):
    other = saved("other.pkl", seed=1)
    lines = ["/system", "/system 小船", "苹果", "/clear", "/system none", "/model", f"/model {other}",
             "/model /nowhere.pkl", "苹果", "/modle"]
    out = converse(monkeypatch, capsys, lines, "--model", saved(), "--max_new_tokens", 4)[1]
    assert "没有系统提示" in out and "系统提示：小船" in out and "other：一次看 48 个词元" in out and "/nowhere.pkl" in out
    assert "是不是想写 /model" in out


def test_turns_that_are_forgotten_and_questions_too_long_are_said(saved, capsys, monkeypatch):
    lines = ["苹果在河边。" * 2] * 4
    out = converse(monkeypatch, capsys, lines, "--model", saved(), "--max_new_tokens", 6)[1]
    assert "模型已经看不到" not in out.split("小寻：")[1] and "最早的 2 轮模型已经看不到" in out
    code, out, err = answer(capsys, "--model", saved(), "--prompt", "苹果在河边。" * 30, "--max_new_tokens", 3)
    assert code == 0 and "超过模型训练时的长度 48" in err and "超过" not in out


def test_an_empty_reply_is_said(saved, capsys, monkeypatch):
    monkeypatch.setattr(session, "stream", lambda *a, **how: iter(()))
    assert "空的回答" in converse(monkeypatch, capsys, ["苹果"], "--model", saved())[1]


def test_stop_words_end_a_reply_and_are_not_part_of_it(saved, capsys, monkeypatch):
    whole = answer(capsys, "--model", saved(), "--prompt", "苹果", "--max_new_tokens", 9)[1]
    stop = whole[3:5]
    code, out, err = answer(capsys, "--model", saved(), "--prompt", "苹果", "--max_new_tokens", 9, "--stop", stop,
                            "--stop", "不会有的话")
    assert code == 0 and out == whole[:whole.index(stop)] + "\n"
    with pytest.raises(UserError):
        chat.main(["--model", saved(), "--prompt", "x", "--stop", ""])


def test_top_p_zero_is_the_best_one_alone(saved, capsys):
    path = saved()
    greedy = answer(capsys, "--model", path, "--prompt", "苹果", "--max_new_tokens", 9)[1]
    assert answer(capsys, "--model", path, "--prompt", "苹果", "--max_new_tokens", 9, "--temperature", 1, "--top_p", 0,
                  "--top_k", -1)[1] == greedy


def test_a_shopping_list_reads_like_one(capsys):
    text = "|苹果|三斤|没有||大米|两袋|新的|"
    assert readable(text) == "购物清单：\n  · 苹果　三斤\n  · 大米　两袋（新的）"
    for other in ("", "|", "|a|b|", "|a|b|c|d|", "好|的", "|a|b|c|\n|---|---|---|", text + "好"):
        assert readable(other) == other
    for pieces in (list(text), [text], ["|a|b|", "\n", "|c"], ["好", "|a|b|c|"], ["|", "a"], []):
        show(iter_with_close(pieces), as_list=True)
        assert capsys.readouterr().out == readable("".join(pieces)) + "\n"
    show(iter_with_close(list(text)))
    # what is graded is never changed
    assert capsys.readouterr().out == text + "\n"


def iter_with_close(pieces):
    yield from pieces


def test_ctrl_c_ends_the_reply_not_the_chat(saved, capsys, monkeypatch):
    real, calls = Session.ask, []

    def ask(self, text, **how):
        calls.append(text)
        if text == "停":
            raise KeyboardInterrupt
        return real(self, text, **how)

    monkeypatch.setattr(Session, "ask", ask)
    code, out, _ = converse(monkeypatch, capsys, ["停", "苹果", KeyboardInterrupt], "--model", saved(),
                            "--max_new_tokens", 3)
    assert code == 0 and calls == ["停", "苹果"] and "已打断" in out


@pytest.mark.parametrize("words, code", [
    (["--model", "/nowhere.pkl"], 3), (["--temperature", "-1"], 2), (["--top_p", "7"], 2),
    (["--max_new_tokens", "0"], 2),
    (["--temperature", "3"], 2), (["--repetition_penalty", "0"], 2), (["--top_k", "-2"], 2),
    (["--presence_penalty", "inf"], 2),
    (["--n_layer", "3"], 2), (["--temperature", "nan"], 2), (["--context", "1"], 2), (["--nonsense"], 2)])
def test_mistakes_are_explained(words, code, capsys):
    with pytest.raises(UserError) as error:
        chat.main([*words, "--prompt", "x"])
    assert error.value.code == code and capsys.readouterr().out == ""


def test_a_reply_stays_within_the_context(saved):
    assert within(64, [0] * 20, 500) == 44 and within(64, [0] * 20, 10) == 10 and within(64, [0] * 90, 500) == 32


def test_learned_positions_bound_what_is_wanted():
    learned = toy.toy_model(position="learned", max_position=48)
    assert context_of(learned, {"run": {"max_len": 40}}, 4096) == 48 and context_of(learned,
        {"run": {"max_len": 40}}) == 40
    assert context_of(toy.toy_model(), {"run": {"max_len": 40}}, 4096) == 4096


@pytest.mark.parametrize("word, said", [
    ("--do_sample", "--temperature"), ("--num_beams", "束搜索"), ("--max_tokens", "请写 --max_new_tokens"),
    ("--temp", "请写 --temperature"),
    ("--repeat_penalty", "--repetition_penalty"), ("--num_return_sequences", "--seed"), ("--model_path", "请写 --model"),
    ("--temprature", "是不是想写 --temperature"), ("--n_of_sampl", "--help"), ("--dry_run", "不训练"), ("--find_batch", "不训练"),
    ("--resume", "不训练")])
def test_words_of_other_programs_get_a_hint_that_helps(word, said):
    with pytest.raises(UserError) as error:
        chat.main([word, "1", "--prompt", "x"])
    assert error.value.code == 2 and said in str(error.value) and "n_of_samples" not in str(error.value)

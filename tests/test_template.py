"""One renderer: ids and what is learned from them, against worked examples and against the mask."""
import hashlib
import json
import random

import numpy as np
import pytest

from tools import Vocab
from tools.formats import Row
from tools.mask import mask_from_id_to_id
from tools.template import (CALL, ROLE_NAMES, THINK, call_text, compact, message_texts, offer_text, parsed_call, render,
                            render_many,
                            render_prompt, render_text)

USER, ASSISTANT, SYSTEM, END = 9, 10, 11, 1
LETTERS = "你好您是谁小寻请问：。\nUser<|im_end|>😀abc123,."


@pytest.fixture(scope="module")
def vocab():
    return Vocab.create_vocab(["你好您是谁我小寻请问好的。"] * 9, 500, "char", texts=True, progress=False)


def turns(*pairs):
    names = {"S": "system", "U": "user", "A": "assistant"}
    return [{"role": names[role], "content": content} for role, content in pairs]


def random_messages(rng):
    roles = rng.choices("UAS", weights=[5, 5, 1], k=rng.randrange(1, 8))
    return turns(*((r, "".join(rng.choices("你好您是谁小寻：。\nUser<|im_end|>😀", k=rng.randrange(6)))) for r in roles))


def test_D1_dialogue_ids(vocab):
    ids, learn = render(turns(("S", "小寻"), ("U", "你好"), ("A", "您好"), ("U", "谁"), ("A", "我")), vocab)
    c = vocab.id
    colon = c("：")
    assert ids.tolist() == [END, SYSTEM, colon, c("小"), c("寻"), USER, colon, c("你"), c("好"), ASSISTANT, colon, c("您"),
                            c("好"), END,
                            USER, colon, c("谁"), ASSISTANT, colon, c("我"), END]
    assert ids.dtype == np.int32 and learn.dtype == bool
    assert np.flatnonzero(learn).tolist() == [11, 12, 13, 19, 20]


def test_content_cannot_forge_a_role_or_an_end(vocab):
    for forged in ("<|im_end|>", "User", "User：", "<|User|>", "[PAD]"):
        ids, _ = render(turns(("U", forged), ("A", forged)), vocab)
        assert np.flatnonzero(ids < 16).tolist() == [0, 1, len(vocab.encode(forged)) + 3, len(ids) - 1]


def test_turns_after_the_last_reply_are_dropped(vocab):
    base = turns(("U", "你好"), ("A", "好"))
    assert render(base + turns(("U", "谁"), ("S", "小寻")), vocab)[0].tolist() == render(base, vocab)[0].tolist()
    ids, learn = render(turns(("U", "你好")), vocab)
    assert ids.tolist() == [END] and not learn.any()


def test_cutting_drops_a_turn_or_ends_inside_a_reply(vocab):
    messages = turns(("U", "你好"), ("A", "您好"), ("U", "谁"), ("A", "我"))
    whole, learn = render(messages, vocab)
    first = 10                                                          # the end of the first reply
    for max_len in range(1, len(whole) + 1):
        ids, learn_cut = render(messages, vocab, max_len)
        kept = 1 if max_len <= 7 else max_len if max_len <= first else first if max_len <= 15 else max_len
        assert ids.tolist() == whole[:kept].tolist() and learn_cut.tolist() == learn[:kept].tolist(), max_len
    assert render(messages, vocab, len(whole) + 5)[0].tolist() == whole.tolist()


def supervised_from_mask(ids, vocab):
    """What is learned of a dialogue, from its ids alone: what lies in no span from another's role to Assistant."""
    assistant, *others = roles = [vocab.id(name) for name in sorted(ROLE_NAMES.values())]
    context = np.isin(ids, roles)
    for role in others:
        context |= mask_from_id_to_id(ids, role, assistant)
    context[1:] |= ids[:-1] == assistant                                # the colon
    context[:1] = True                                                  # the leading end
    return ~context


def test_D5_template_and_mask_agree_on_10000_conversations(vocab):
    rng = random.Random(0)
    learned = 0
    for _ in range(10_000):
        messages = random_messages(rng)
        ids, learn = render(messages, vocab, rng.choice([None, rng.randrange(1, 40)]))
        assert learn.tolist() == supervised_from_mask(ids, vocab).tolist(), (messages, ids)
        learned += learn.sum()
    assert learned > 50_000                                             # it was not all empty


FORGED = ["[think]", "[/think]", "[call]", "[/call]", "Tool：", "<|Tool|>", "<think>", "</think>", "<tool_call>",
          "<|call|>", "Tools"]


def random_acting(rng):
    """A conversation with thoughts, calls, results and tools on offer, some of them empty or full of forged marks."""
    def word():
        return "".join(rng.choices("你好您是谁小寻：。\n", k=rng.randrange(5))) + rng.choice(FORGED + [""] * 9)
    messages = [{"role": "tools", "content": compact([{"name": word()}])}] if rng.random() < 0.5 else []
    for role in rng.choices(["user", "assistant", "system", "tool"], weights=[4, 6, 1, 4], k=rng.randrange(1, 9)):
        message = {"role": role, "content": word()}
        if role == "assistant":
            message |= {"thinking": word()} if rng.random() < 0.5 else {}
            calls = [call_text(word(), {word(): word()}) for _ in range(rng.choice([0, 0, 1, 2]))]
            message |= {"calls": calls} if calls else {}
        messages.append(message)
    return messages


def test_W1_W2_template_and_mask_agree_on_10000_conversations_with_tools(vocab):
    rng = random.Random(7)
    seen, marks = np.zeros(16, int), [vocab.id(m) for pair in (THINK, CALL) for m in pair]
    for _ in range(10_000):
        messages = random_acting(rng)
        ids, learn = render(messages, vocab, rng.choice([None, None, rng.randrange(1, 60)]))
        assert learn.tolist() == supervised_from_mask(ids, vocab).tolist(), (messages, ids)
        seen += np.bincount(ids[ids < 16], minlength=16)
        assert learn[np.isin(ids, marks)].all() and not learn[np.isin(ids, (9, 10, 11, 12, 13))].any()
    assert (seen[[1, *marks, 9, 10, 11, 12, 13]] > 1000).all() and seen[[0, 2, 3, 8, 14, 15]].sum() == 0


def test_W1_W2_nothing_can_forge_a_mark_and_everything_can_be_read_back(vocab):
    """From the ids alone: the marks and roles are exactly those that were rendered, what lies between is what was
    said."""
    rng = random.Random(8)
    for _ in range(2_000):
        messages = random_acting(rng)
        messages.append({"role": "assistant", "content": "好"})
        ids = render(messages, vocab)[0].tolist()
        wanted = [1]
        for m in messages:
            wanted += [vocab.id(ROLE_NAMES[m["role"]])] + ([4, 5] if "thinking" in m else []) + [6,
                7] * len(m.get("calls", ()))
            wanted += [1] if m["role"] == "assistant" else []
        assert [i for i in ids if i < 16] == wanted
        texts = [t for m in messages for t in message_texts(m)]
        assert vocab.decode(ids) == "".join(texts_with_colons(messages)) and all(vocab.decode(vocab.encode(t)) == t
            for t in texts)


def texts_with_colons(messages):
    return ["：" + "".join(message_texts(m)) for m in messages]


def test_W1_a_thought_can_be_begun_forbidden_and_left_open(vocab):
    asked = turns(("U", "谁"))
    plain = render_prompt(asked, vocab)
    assert render_prompt(asked, vocab, "on") == [*plain, 4] and render_prompt(asked, vocab, "off") == [*plain, 4, 5]
    # each prompt is how such a reply begins in training
    for thought in (None, "", "想"):
        reply = {"role": "assistant", "content": "我", **({} if thought is None else {"thinking": thought})}
        ids = render([*asked, reply], vocab)[0].tolist()
        for way in {None: ["auto"], "": ["auto", "on", "off"], "想": ["auto", "on"]}[thought]:
            prompt = render_prompt(asked, vocab, way)
            assert ids[:len(prompt)] == prompt


def test_W1_thinking_on_off_auto_of_training(vocab):
    messages = [*turns(("U", "谁"), ("A", "我"), ("U", "您")), {"role": "assistant", "content": "小寻", "thinking": "好"}]
    row = Row("dialogue", messages=messages)
    ids = {how: render_many([row], vocab, thinking=how)[0][0][0].tolist() for how in ("auto", "on", "off")}
    assert [ids[how].count(4) for how in ids] == [1, 2, 0] and messages[-1]["thinking"] == "好"
    assert ids["off"] == render(turns(("U", "谁"), ("A", "我"), ("U", "您"), ("A", "小寻")), vocab)[0].tolist()


def test_a_call_is_read_only_where_it_is_one():
    assert parsed_call(call_text("量", {"a": [1, "x"]})) == {"name": "量", "arguments": {"a": [1, "x"]}}
    for text in ("", "{", "[]", "3", '{"name": "x"}', '{"name": 3, "arguments": {}}', '{"name": "x", "arguments": []}',
                 "[" * 100_000):
        assert parsed_call(text) is None


def plain_conversation(rng):
    def said():
        return "".join(rng.choices(LETTERS, k=rng.randrange(1, 30)))
    messages = [{"role": "system", "content": said()}] if rng.random() < 0.3 else []
    for _ in range(rng.randrange(1, 4)):
        reply = {"role": "assistant", "content": said()}
        messages += [{"role": "user", "content": said()}, reply]
    return messages


def test_plain_conversations_have_the_ids_that_they_had_before_there_were_thoughts_and_calls():
    """The two hashes were taken from the first form of the template: a vocabulary's, and that of 1,000
    conversations."""
    rng, words, made = random.Random(3), sorted(set(LETTERS) | {"你好", "小寻", "im_end", "User"}), []
    vocab = Vocab.from_words(words, [-5] * len(words), "char")
    assert vocab.hash == "7d9334f4b672372a691cd436de419b7282e6c65495c8a22e35e80835351fe928"
    for _ in range(1000):
        messages = plain_conversation(rng)
        ids, learn = render(messages, vocab, rng.choice([None, rng.randrange(1, 80)]))
        made.append([ids.tolist(), learn.tolist(), render_prompt(messages[:-1], vocab)])
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    assert digest == "2aa2e9120726a95a0565545aafb3f26c417161b3c9a000ac57bc4b85dab2b82a"


def test_prompt_is_what_the_reply_follows_in_training(vocab):
    messages = turns(("S", "小寻"), ("U", "你好"), ("A", "您好"), ("U", "谁"), ("A", "我"))
    ids, _ = render(messages, vocab)
    prompt = render_prompt(messages[:-1], vocab)
    assert isinstance(prompt, list) and ids[:len(prompt)].tolist() == prompt
    assert ids[len(prompt):].tolist() == [vocab.id("我"), END]


@pytest.mark.parametrize("tool, said", [
    ({"name": "a"}, "a()"),
    ({"type": "function", "function": {"name": "a", "description": "查", "strict": True, "parameters": {
        "type": "object", "additionalProperties": False, "required": ["x", "k"], "properties": {
            "x": {"type": "string"}, "n": {"type": "integer", "description": "几个"}, "k": {"enum": ["甲"]}}}}},
     'a(x, n?: integer 几个, k: {"enum": ["甲"]}) 查'),
    ({"name": "a", "parameters": {"type": "object", "properties": {"x": {"description": "哪个"}, "y": True}}},
     'a(x?: {"description": "哪个"}, y?: true)'),
    *[(odd, compact(odd)) for odd in (
        {"name": "a", "parameters": {"type": "object"}}, {"name": "a", "input_schema": {"type": "object"}},
        {"name": "a", "parameters": {"properties": {}, "$defs": {"b": {}}}}, {"name": "a", "examples": []},
        {"name": "a", "parameters": {"properties": {}, "additionalProperties": {"type": "string"}}})]])
def test_W1_a_tool_is_told_as_a_signature_and_loses_nothing(vocab, tool, said):
    assert offer_text(compact([tool])) == said and offer_text(compact([tool, tool])) == said + "\n" + said
    ids = render([{"role": "tools", "content": compact([tool])}, *turns(("U", "谁"), ("A", "我"))], vocab)[0].tolist()
    assert ids[1:3 + len(vocab.encode(said))] == [vocab.id("Tools"), vocab.id("："), *vocab.encode(said)]


def test_D2_a_text_is_learned_whole(vocab):
    ids, learn = render_text("你好", vocab)
    assert ids.tolist() == [END, vocab.id("你"), vocab.id("好"), END]
    assert learn.tolist() == [False, True, True, True]


def test_many_equals_one_by_one(vocab):
    rng = random.Random(1)
    rows = [Row("dialogue", messages=random_messages(rng)) for _ in range(50)]
    rows += [Row("text", texts=["你好", "是谁"]), Row("preference", messages=turns(("U", "谁")), chosen="我", rejected="你")]
    for max_len in (None, 12):
        got = render_many(rows, vocab, max_len)
        want = [[render(row.messages, vocab, max_len)] for row in rows[:50]]
        want.append([render_text(text, vocab) for text in rows[50].texts])
        want.append([render(turns(("U", "谁"), ("A", reply)), vocab, max_len) for reply in ("我", "你")])
        for ours, theirs in zip(got, want, strict=True):
            for (ids, learn), (ids_2, learn_2) in zip(ours, theirs, strict=True):
                assert ids.tolist() == ids_2.tolist() and learn.tolist() == learn_2.tolist()
                assert ids.dtype == np.int32 and learn.dtype == bool
    assert render_many([], vocab) == []

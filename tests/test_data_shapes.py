"""Every shape of the field's data through the real reader and the real token cache: what went in and what came out.

A string of a row is learned, or context, or counted by name as dropped. Nothing else can happen to it.
"""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

import toy
from acting_shapes import BROKEN, KEPT
from data_shapes import TALKS
from other_shapes import PAIRS, REFUSED, TEXTS
from tools.errors import UserError
from tools.formats import BadLines, Row, parse_line, read_rows, row_texts
from tools.reading.acting import written
from tools.template import message_texts
from tools.vocab import Vocab
from train_agent.trainers.data.token_cache import open_cache

READ = {**TALKS, **TEXTS}
ROWS = 30
LABELS = re.compile(
    r"Human:|Assistant:|User:|###|\[\|(?:Human|AI)\|\]|<\|(?:Human|MOSS)\|>:|"
    r"<\|im_(?:start|end)\|>(?:user|system|assistant)?|"
    r"<\|(?:Inner Thoughts|Commands|Results)\|>: None<eo[tcr]>|</?s>|\[/?INST\]|<</?SYS>>|</?think>|<eo[hm]>|[\s，]+"
)
STRUCTURE = ("role", "from", "type")


@pytest.fixture(scope="module")
def vocab():
    texts = [t for made in (READ, PAIRS, KEPT) for row, *_ in made.values()
             for t in row_texts(parse_line(line(row(1))))]
    return Vocab.create_vocab(texts, vocab_size=900, token_kind="char", texts=True, progress=False)


def line(row):
    text = json.dumps(row, ensure_ascii=False)
    earlier = getattr(row, "earlier", None)
    return (json.dumps(earlier, ensure_ascii=False)[:-1] + ", " + text[1:] if earlier else text).encode()


def write(path, rows):
    path.write_bytes(b"".join(line(row) + b"\n" for row in rows))
    return path


def strings(value, name=""):
    """(key, string) of every string in a row; JSON written into a string is looked into."""
    if isinstance(value, dict):
        for key, one in [*value.items(), *getattr(value, "earlier", {}).items()]:
            yield from strings(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one, name)
    elif isinstance(value, str) and name not in STRUCTURE:
        try:
            inner = json.loads(value) if value[:1] in ("[", "{") else None
        except ValueError:
            inner = None
        if isinstance(inner, (list, dict)):
            yield from strings(inner)
        else:
            yield name, value


def lost(row, out):
    """Characters of the row's strings that are in no string that came out."""
    pieces = sorted(filter(None, out), key=len, reverse=True)
    rest = 0
    for _, text in strings(row):
        if any(text in piece for piece in pieces):
            continue
        for piece in pieces:
            text = text.replace(piece, "")
        rest += len(LABELS.sub("", text))
    return rest


def turns(messages):
    return [(m["role"], m["content"]) for m in messages]


def learned_texts(row):
    return [text for m in row.messages if m["role"] == "assistant" and m.get("weight") != 0
            for text in message_texts(m)]


def decoded(cache, vocab, documents):
    """(all the text of these documents, the learned text)"""
    ids = [cache.document(i) for i in documents]
    return vocab.decode(np.concatenate([i for i, _ in ids])), vocab.decode(
        np.concatenate([i[learned] for i, learned in ids])
    )


def total(dropped):
    return sum(size for _, size in dropped.values())


@pytest.mark.parametrize("name", READ)
def test_W1_D9_every_string_of_a_row_is_learned_context_or_counted(ram_path, vocab, name):
    make, kind, says, names = READ[name]
    rows = [make(i) for i in range(ROWS)]
    data = write(ram_path / "a.jsonl", rows)
    cache = open_cache(data, vocab, "instruction_finetuning", ram_path / "cache")
    parsed = list(read_rows(data))
    assert len(parsed) == ROWS and cache.meta["bad"] == 0
    for i, (row, read) in enumerate(zip(rows, parsed)):
        if read.kind == "preference":
            out = [*row_texts(read)[:-1]]
        elif kind == "text":
            assert (read.kind, read.texts) == (kind, says(i))
            out = read.texts
        else:
            assert (read.kind, turns(read.messages)) == (kind, says(i))
            out = row_texts(read)
        whole, learned = decoded(cache, vocab, np.flatnonzero(np.asarray(cache.rows) == i))
        unanswered = read.dropped.get("末尾没有回答的话", 0)
        assert all(text in whole for text in out[: len(out) - bool(unanswered)])
        targets = (
            out
            if kind == "text"
            else learned_texts(read)
        )
        assert learned == "".join(targets or out[-1:])
        missing = lost(row, out) - sum(read.dropped.values()) - (len(read.rejected or ""))
        assert missing <= 0, (read, row)
    assert set(names) <= cache.meta["dropped"].keys(), cache.meta["dropped"]
    wanted = sum(sum(read.dropped.values()) + len(read.rejected or "") for read in parsed)
    assert total(cache.meta["dropped"]) == wanted
    toy_report(name, ROWS)


@pytest.mark.parametrize("name", KEPT)
def test_W1_W2_thoughts_calls_results_and_tools_come_out_as_they_went_in(ram_path, vocab, name):
    make, says, names = KEPT[name]
    rows = [make(i) for i in range(ROWS)]
    data = write(ram_path / "a.jsonl", rows)
    cache = open_cache(data, vocab, "instruction_finetuning", ram_path / "cache")
    parsed = list(read_rows(data))
    assert len(parsed) == len(cache) == ROWS and cache.meta["bad"] == 0
    for i, (row, read) in enumerate(zip(rows, parsed)):
        assert (read.kind, read.messages) == ("dialogue", says(i))
        whole, learned = decoded(cache, vocab, [i])
        texts = learned_texts(read)
        assert learned == "".join(texts) and (whole.endswith(texts[-1]) or read.messages[-1].get("weight") == 0)
        assert all(text in whole for text in row_texts(read))
        assert lost(row, row_texts(read)) <= sum(read.dropped.values())
        again = parse_line(json.dumps(written(read.messages)).encode())
        assert (again.messages, again.dropped) == (read.messages, {})
    assert set(names) == set(cache.meta["dropped"]), cache.meta["dropped"]
    taught = {"thinking": any("thinking" in m for m in parsed[0].messages), "calls": bool(learned_calls(parsed[0]))}
    assert cache.meta["acts"] == sorted(act for act, is_there in taught.items() if is_there)


def learned_calls(row):
    return [call for m in row.messages if m.get("weight") != 0 for call in m.get("calls", ())]


@pytest.mark.parametrize("name", BROKEN)
def test_W1_W2_broken_thoughts_calls_and_tools_are_refused_by_name(name):
    row, reason = BROKEN[name]
    found = parse_line(line(row))
    assert isinstance(found, str) and reason in found, found


@pytest.mark.parametrize("name", PAIRS)
def test_D9_every_preference_shape_gives_its_pair(ram_path, vocab, name):
    make, says = PAIRS[name]
    rows = [make(i) for i in range(ROWS)]
    data = write(ram_path / "a.jsonl", rows)
    cache = open_cache(data, vocab, "preference", ram_path / "cache")
    assert len(cache) == 2 * ROWS and cache.meta["bad"] == 0
    for i, read in enumerate(read_rows(data)):
        prompt, chosen, rejected = says(i)
        assert (read.kind, turns(read.messages), read.chosen, read.rejected) == ("preference", prompt, chosen, rejected)
        assert lost(rows[i], row_texts(read)) <= sum(read.dropped.values())
        for document, reply in ((2 * i, chosen), (2 * i + 1, rejected)):
            whole, learned = decoded(cache, vocab, [document])
            assert learned.endswith(reply) and all(text in whole for _, text in prompt)
    toy_report(name, ROWS)


@pytest.mark.parametrize("name", REFUSED)
def test_W2_what_cannot_be_learned_is_refused_by_name(ram_path, vocab, name):
    make, reason = REFUSED[name]
    data = write(ram_path / "a.jsonl", [make(i) for i in range(ROWS)] + [{"text": "渡口"}] * ROWS * 50)
    cache = open_cache(
        data, vocab, "pretraining", ram_path / "cache", max_bad_share=0.5, bad_log=ram_path / "bad.jsonl"
    )
    assert cache.meta["bad"] == ROWS and len(cache) == ROWS * 50
    named = [json.loads(one) for one in (ram_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(named) == ROWS and all(reason in one["reason"] for one in named), named[0]
    toy_report(name, ROWS)


def toy_report(name, rows):
    """Shapes that passed: their unaccounted characters are 0."""
    SEEN[name] = rows


SEEN = {}


def test_the_figure_is_over_forty_shapes():
    assert len(READ) + len(PAIRS) + len(REFUSED) >= 70 and len(READ) >= 35
    assert len(KEPT) + len(BROKEN) >= 90 and len(KEPT) >= 60 and len(BROKEN) >= 25


# ---- --columns ----

OWN = [
    {
        "客官": f"问{i}",
        "船家": f"答{i}",
        "人设": "船夫",
        "备注": f"注{i}",
        "旧": [["早", "早安"]],
        "data": {"深": f"更深{i}"},
    }
    for i in range(ROWS)
]


@pytest.mark.parametrize(
    "columns, said",
    [
        (["user=客官", "assistant=船家"], [("user", "问1"), ("assistant", "答1")]),
        (["question=客官", "answer=船家", "system=人设"], [("system", "船夫"), ("user", "问1"), ("assistant", "答1")]),
        (
            ["prompt=客官", "query=备注", "response=船家"],
            [("user", "问1\n注1"), ("assistant", "答1")],
        ),  # LLaMA-Factory's
        (
            ["prompt=客官", "response=船家", "history=旧"],
            [("user", "早"), ("assistant", "早安"), ("user", "问1"), ("assistant", "答1")],
        ),
        (["query=客官", "response=data.深"], [("user", "问1"), ("assistant", "更深1")]),
    ],
)
def test_columns_name_the_fields(ram_path, vocab, columns, said):
    from tools.formats import fields_of

    data = write(ram_path / "a.jsonl", OWN)
    fields = fields_of({"columns": columns, "text_field": None})
    cache = open_cache(data, vocab, "instruction_finetuning", ram_path / "cache", fields)
    read = list(read_rows(data, fields))
    assert len(read) == ROWS and turns(read[1].messages) == said
    assert lost(OWN[1], row_texts(read[1])) <= sum(read[1].dropped.values())
    assert (
        cache.folder
        != open_cache(
            data,
            vocab,
            "instruction_finetuning",
            ram_path / "cache",
            fields_of({"columns": ["user=客官", "assistant=备注"]}),
        ).folder
    )


def test_columns_for_texts_pairs_and_lists():
    text = parse_line(line({"正": "河", "title": "x"}), {"text": "正"})
    assert (text.kind, text.texts, text.dropped) == ("text", ["河"], {"title": 1})
    pair = parse_line(
        line({"甲": "问", "乙": "好", "丙": "坏"}), {"instruction": "甲", "chosen": "乙", "rejected": "丙"}
    )
    assert (pair.kind, pair.chosen, pair.rejected) == ("preference", "好", "坏")
    hidden = {
        "messages": [{"role": "user", "content": "别的"}, {"role": "assistant", "content": "话"}],
        "问": "甲",
        "答": "乙",
    }
    row = parse_line(line(hidden), {"instruction": "问", "output": "答"})  # what was named wins over what is known
    assert turns(row.messages) == [("user", "甲"), ("assistant", "乙")] and sum(row.dropped.values()) >= 3
    assert "columns" in parse_line(line({"别": "x"}), {"instruction": "问", "output": "答"})


@pytest.mark.parametrize("value", ["x=y", ["user"], ["user="], ["user=a", "question=b"], {"谁": "a"}])
def test_wrong_columns_are_the_users_error(value):
    from tools.formats import fields_of

    with pytest.raises(UserError) as error:
        fields_of({"columns": value})
    assert error.value.code == 2 and "columns" in str(error.value)


def test_columns_reach_every_reader(ram_path, monkeypatch):
    """One SFT run on data of no known shape: vocabulary, check-up, cache and training all read the named fields."""
    data = write(ram_path / "a.jsonl", OWN)
    from tools.check_data import check
    from tools.formats import fields_of

    fields = fields_of({"columns": ["user=客官", "assistant=船家"]})
    built = Vocab.create_vocab(data, vocab_size=500, token_kind="char", text_field=fields, progress=False)
    assert "问" in built.words and "注" not in built.words
    result = check(data, vocab=built, text_field=fields, progress=False)
    assert result["rows"] == ROWS and result["dropped"]["备注"][0] == ROWS
    options = toy.toy_options(ram_path, built, "sft", OWN, columns=["user=客官", "assistant=船家"])
    assert toy.train(options, "sft").exit == 0


LEAVES = ["", "好", "[]", "[{}]", '[{"role": "user", "content": "x"}]', '{"name": "f", "arguments": {}}',
          "Human: 甲\n\nAssistant: 乙", "<think>想</think>答", "user", "assistant", 0, 1.5, True, False, 1e400, 10 ** 30,
          [], {},
          [[]], [{}], [None], {"": ""}, ["好"], {"role": "user"}, {"type": "text", "text": "好"}, "\ud800", "\0"]
NAMES = """messages conversations dialogue history data chat role from content value text prompt response instruction
input output system chosen rejected question answer title paragraphs 段落 weight tools tool_calls function_call
reasoning_content tool_call_id name arguments type label context desc human assistant choices completion""".split()


def strange(rng, depth):
    if depth and rng.random() < 0.5:
        return ([strange(rng, depth - 1) for _ in range(rng.randrange(4))] if rng.random() < 0.5 else
                {rng.choice(NAMES): strange(rng, depth - 1) for _ in range(rng.randrange(5))})
    return rng.choice(LEAVES)


@pytest.mark.parametrize("seed", range(4))
def test_D7_no_row_whatever_its_types_ends_in_another_exception(seed):
    """Known names with any values, and good rows in which one value is another: read, or refused with a reason."""
    rng = random.Random(seed)
    good = [row for row in (make(1) for make, *_ in READ.values()) if isinstance(row, dict)]
    for _ in range(2000):
        row = {rng.choice(NAMES): strange(rng, 3) for _ in range(rng.randrange(1, 5))}
        if rng.random() < 0.5:
            row = {**rng.choice(good), **row}
        columns = rng.choice([None, "text", ["title", "text"], {"user": "prompt", "assistant": "data"}])
        found = parse_line(json.dumps(row).encode(), columns)
        assert isinstance(found, (str, Row)), row


@pytest.mark.parametrize("row", [
    {"paragraphs": 3}, {"paragraphs": [{"a": 1}, "b"], "text": 3}, {"paragraphs": '[{"a": 1}]'},
    {"paragraphs": ["甲", 2]},
    {"data": [{"input": "问", "system": {"甲": "乙"}, "response": "答"}]}], ids=str)
def test_D7_values_of_other_types_are_refused_with_a_reason(row):
    assert isinstance(parse_line(line(row)), str)


def test_bad_lines_say_which_fields_they_have():
    bad = BadLines()
    bad.add("a", 1, parse_line(line({"客官": "x"})), line({"客官": "x"}))
    with pytest.raises(UserError, match="客官"):
        bad.check(1)


def test_review_of_field_names_is_bounded(ram_path, vocab):
    rows = [{"text": "河", f"字段{i}": "船"} for i in range(200)]
    cache = open_cache(write(ram_path / "a.jsonl", rows), vocab, "pretraining", ram_path / "cache")
    assert len(cache.meta["dropped"]) <= 41 and sum(n for n, _ in cache.meta["dropped"].values()) == 200
    assert Path(cache.folder).exists()


@pytest.mark.parametrize(
    "row", [{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "weight": 0.5}]},
                                 {"prompt": "问", "response": "答", "weight": 2}])
def test_a_weight_that_is_not_kept_is_named(row):
    assert any("weight" in name for name, size in parse_line(line(row)).dropped.items() if size)
    assert not parse_line(line({"prompt": "问", "response": "答", "weight": 1.0})).dropped.get("weight")

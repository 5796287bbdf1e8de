"""Replies held to a form: every call and every JSON text is whole and fits, however hot the model and short the room.
"""
import json
import random

import pytest
import torch

import toy
from tools.acting.forms import Form
from tools.acting.schema import SchemaError, json_grammar
from tools.acting.spoken import Spoken
from fits import fits
from model import ModelConfig, TinySeek
from model.generate import generate_replies
from model.sampling import Sampling
from tools.template import compact
from toy_export import toy_vocab

WIDTH = 800                     # wider than the vocabulary: ids that are no token are never chosen
CITY = {"type": "object", "properties": {"city": {"enum": ["北京", "上\"海\n"]}, "days": {"type": "integer"}},
        "required": ["city"]}
SUM = {"type": "object", "properties": {"算式": {"type": "string"}}, "required": ["算式"]}
TREE = {"$defs": {"node": {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 3}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["name"]}}, "$ref": "#/$defs/node"}
TOOLS = [{"type": "function", "function": {"name": "算", "parameters": SUM}}, {"name": "天气", "parameters": CITY},
         {"type": "function", "function": {"name": "now"}}]


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab(600, "char")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinySeek(ModelConfig(vocab_size=WIDTH, **toy.SHAPE))


def schema_of(call):
    parameters = {t["name"]: t.get("parameters") for t in ((one.get("function") or one) for one in TOOLS)}
    return parameters[call["name"]] or {"type": "object", "properties": {}}


def sampled_calls(vocab, model, count, room=60, seed=0):
    rule = Form(compact(TOOLS), must=True, most=1).rule(vocab, WIDTH, room)
    called = vocab.id("[/call]")
    replies = generate_replies(model, [[1, 9, 300, 10]] * count, room, 256, seed=seed, temperature=1.5, guard=False,
                               stop_ids=(1, called), rule=rule)
    for reply in replies:
        spoken = Spoken(vocab)
        spoken.feed(reply.ids)
        spoken.end()
        text, = spoken.calls
        call = json.loads(text)
        assert reply.finish == "stop" and text == compact(call) and list(call) == ["name", "arguments"]
        assert fits(call["arguments"], schema_of(call)), text
    return len({tuple(reply.ids) for reply in replies})


def test_W3_calls_of_an_untrained_model_always_parse_and_fit(vocab, model):
    assert sampled_calls(vocab, model, 600) > 300


def test_replies_side_by_side_keep_to_rules_of_their_own(vocab, model):
    forms = [Form(compact(TOOLS), must=True, most=1), Form(), Form(compact(TOOLS[1:2]), must=True, most=1)]
    rules = [form.rule(vocab, WIDTH, 60) for form in forms]
    prompts, how = [[1, 9, 300 + i, 10] for i in range(12)], {"temperature": 1.5, "guard": False, "scored": True}
    seeds, stop_ids = [f"s{i}" for i in range(12)], (1, vocab.id("[/call]"))
    together = generate_replies(model, prompts, 60, seed=seeds, rule=rules * 4, stop_ids=stop_ids, **how)
    assert rules[1] is None
    for i, rule in enumerate(rules):
        alone = generate_replies(model, prompts[i::3], 60, seed=seeds[i::3], rule=rule, stop_ids=stop_ids, **how)
        assert [one.ids for one in alone] == [one.ids for one in together[i::3]]
        assert all(len(one.allowed) == (len(one.drawn) if rule else 0) for one in together[i::3])


@pytest.mark.slow
def test_W3_ten_thousand_calls_of_an_untrained_model_parse_and_fit(vocab, model):
    assert sampled_calls(vocab, model, 10_000, 90, seed=1) > 5000


def walked(rule, vocab, rng, most):
    """A reply of ids chosen at random among those that may come; rarely what would only make it long."""
    ids = []
    while len(ids) < most:
        allowed, held = rule.look(ids)
        assert held and allowed.any(), vocab.decode(ids)
        new = int(rng.choice(allowed.nonzero().squeeze(1).tolist()))
        if new == rule.marks["end"]:
            return ids
        ids.append(new)
    raise AssertionError(f"no end within {most}: {vocab.decode(ids)}")


def random_schema(rng, depth=0):
    """Any of the keywords that are held."""
    low = rng.choice([-1200, -7, 0, 3, 18, 0.2, -0.75])
    leaves = [{"type": "string"}, {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 9)},
              {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": ["null", "integer"]},
              {"type": "integer", "minimum": -rng.randrange(30), "maximum": rng.choice([0, 9, 205])},
              {"type": "number", "minimum": low, "maximum": low + rng.choice([0.25, 1, 3.5, 5000])},
              {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + rng.choice([0.5, 1, 2, 40])},
              {"enum": ["一", "1", 1, 12, None, "一二"]}, {"const": {"a": [1.5, "\\"]}}]
    if depth > 2 or rng.random() < 0.3:
        return rng.choice(leaves)

    def inner():
        return random_schema(rng, depth + 1)
    names = rng.sample(["a", "名字", 'q"', "long_name", "x\n"], rng.randrange(4))
    return rng.choice([
        {"type": "object", "properties": {name: inner() for name in names},
         "required": [name for name in names if rng.random() < 0.5]},
        {"type": "array", "items": inner(), "minItems": rng.randrange(2), "maxItems": rng.randrange(2, 4)},
        {"type": "array", "prefixItems": [inner(), inner()], "items": False},
        {"anyOf": [inner(), inner()]}, {"type": "object", "additionalProperties": inner()}])


@pytest.mark.parametrize("seed", range(12))
def test_W3_text_held_to_a_schema_fits_it_in_any_room(vocab, seed):
    rng = random.Random(seed)
    for schema in ([TREE, {}, True] if not seed else []) + [random_schema(rng) for _ in range(4)]:
        form = Form(text=compact(schema))
        least = form.rule(vocab, WIDTH, 10 ** 6).least()
        for room in (least, least + 1, least + 7, least + 60):
            ids = walked(form.rule(vocab, WIDTH, room), vocab, rng, room)
            text = vocab.decode(ids)
            value = json.loads(text)
            assert text.encode() == vocab.decode_bytes(ids) and fits(value, schema), (schema, text)


def test_a_call_begins_only_where_it_can_end(vocab, model):
    form = Form(compact(TOOLS))
    for room in range(1, 40, 3):
        rule = form.rule(vocab, WIDTH, room, acts=("calls",))
        for reply in generate_replies(model, [[1, 9, 300, 10]] * 12, room, seed=room, temperature=2.0, guard=False,
                                      marks=(6, 7), rule=rule):
            spoken = Spoken(vocab)
            spoken.feed(reply.ids)
            assert not spoken.broken()


def test_what_is_written_decides_alone(vocab, model):
    """Penalties do not reach into a call, and one that repeats itself is closed by its room, not cut."""
    rule = Form(compact([TOOLS[0]]), must=True, most=1).rule(vocab, WIDTH, 70)
    reply, = generate_replies(model, [[1, 9, 300, 10]], 70, seed=1, temperature=1.0, no_repeat_ngram=1,
                              repetition_penalty=9.0, rule=rule)
    spoken = Spoken(vocab)
    spoken.feed(reply.ids)
    assert len(spoken.calls) == 1 and not spoken.broken()
    how = Sampling(temperature=0, rule=rule)
    ids, favourite = [], vocab.encode("好")[0]
    while len(ids) < 70:
        logits = torch.zeros(1, WIDTH)
        logits[0, favourite] = 9.0
        new, = how.pick(logits, [ids], None)
        if new == vocab.id("[/call]"):
            break
        ids.append(new)
    call = json.loads(vocab.decode(ids))
    assert set(call["arguments"]["算式"]) == {"好"} and len(call["arguments"]["算式"]) > 20


def test_thoughts_and_calls_stand_in_their_order(vocab):
    marks = {name: vocab.id(f"[{name}]") for name in ("think", "/think", "call", "/call")}
    form, acts = Form(compact(TOOLS), must=True, most=1), ("thinking", "calls")
    rule = form.rule(vocab, WIDTH, 80, acts)

    def may(ids, rule=rule):
        allowed, _ = rule.look(ids)
        return None if allowed is None else {name for name, mark in (*marks.items(), ("end", 1)) if allowed[mark]}
    assert may([]) == {"think", "call"} and may([marks["think"]]) == {"/think"}
    assert may([marks["think"], 300]) == {"/think"} and may([marks["think"], marks["/think"]]) == {"call"}
    long = [marks["think"], *[300] * (80 - 1 - rule.least() - 1)]
    assert rule.look(long)[1] and may(long) == {"/think"}                   # the call needs the room that is left
    done = [marks["call"], *vocab.encode('{"name": "now", "arguments": {}}'), marks["/call"]]
    assert may(done) == {"think", "/think", "end"} and not rule.look(done)[1]
    assert may([], form.rule(vocab, WIDTH, 80, acts, "off")) == {"call"}
    assert may([], form.rule(vocab, WIDTH, 80, acts, "on")) == {"/think"}
    assert may([], Form().rule(vocab, WIDTH, 80, acts)) == {"think", "/think", "end"}   # nothing to call
    assert Form().rule(vocab, WIDTH, 80) is None


@pytest.mark.parametrize("schema, said", [
    ({"type": "strange"}, "type"), ({"$ref": "#/nowhere"}, "不在"), ({"$ref": "http://x/y"}, "不在"),
    ({"enum": []}, "写得完"), ({"type": "integer", "minimum": 3, "maximum": 2}, "写得完"),
    ({"$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/a"}}, "required": ["b"]}},
      "$ref": "#/$defs/a"}, "写得完"),
    ({"type": "string", "minLength": -1}, "minLength"), ({"properties": []}, "properties"), ({"anyOf": []}, "anyOf"),
    ({"type": "array", "prefixItems": 3}, "prefixItems"), ({"required": [3], "type": "object"}, "required"),
    (3, "对象"), ({"minimum": "x", "type": "number"}, "minimum"), ({"const": float("nan")}, "JSON")], ids=str)
def test_a_schema_that_nothing_fits_is_refused_in_words(schema, said):
    with pytest.raises(SchemaError, match=said):
        json_grammar(schema)


def doubling(kind, levels):
    """Levels, each of which holds the next one twice: as two members, or as two ways to read one array."""
    def two(inner):
        if kind == "members":
            return {"type": "object", "properties": {"a": inner, "b": inner}, "required": ["a", "b"]}
        array = {"type": "array", "items": inner, "minItems": 1}
        return {"anyOf": [array, {**array, "maxItems": 5}]}
    return {"$ref": "#/$defs/0", "$defs": {
        **{str(i): two({"$ref": f"#/$defs/{i + 1}"}) for i in range(levels)}, str(levels): {"type": "null"}}}


@pytest.mark.parametrize("schema, said", [
    ({"type": "string", "minLength": 10 ** 9}, "太长"), ({"type": "string", "minLength": 10 ** 40}, "太长"),
    ({"type": "array", "minItems": 10 ** 6, "items": {"type": "object"}}, "太长"), (doubling("members", 30), "太长"),
    ({"type": "array", "minItems": 300, "items": {"type": "array", "minItems": 300}}, "太长"),
    ({"type": "array", "prefixItems": [True] * 20000}, "prefixItems"),
    ({"type": "number", "minimum": float("inf")}, "minimum"),
    ({"type": "integer", "maximum": float("-inf")}, "maximum"),
    ({"type": "number", "minimum": 1e308, "maximum": 1.5e308}, "写得完"),
    ({"type": "number", "minimum": 10 ** 400}, "写得完")], ids=range(10))
def test_a_schema_that_no_memory_or_number_can_hold_is_refused_in_words(schema, said):
    with pytest.raises(SchemaError, match=said):
        json_grammar(schema)


def test_a_schema_that_stands_in_its_own_place_is_what_stands_beside_it(vocab):
    itself = {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "array", "items": {"$ref": "#/$defs/x"}}, {"enum": [7]}]}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"], "$defs": {"x": itself}}
    for seed in range(5):
        ids = walked(Form(text=compact(schema)).rule(vocab, WIDTH, 60), vocab, random.Random(seed), 60)
        assert isinstance(json.loads(vocab.decode(ids))["a"], (int, list))


def test_ways_that_double_with_each_level_stay_few(vocab):
    grammar, start, _ = json_grammar(doubling("ways", 16))
    stacks = grammar.ready((start,))
    for byte in b"[" * 16:
        stacks = grammar.step(stacks, byte)
        assert stacks and len({stack[1:] for stack in stacks}) <= 128
    for byte in grammar.ending(stacks):
        stacks = grammar.step(stacks, byte)
    assert () in stacks
    many = {"enum": [f"值{i}" for i in range(1000)]}        # one way to go on, many words for it: none is lost
    grammar, start, _ = json_grammar(many)
    stacks = grammar.ready((start,))
    for byte in '"值'.encode():
        stacks = grammar.step(stacks, byte)
    assert len(stacks) == 1000


def test_what_a_grammar_cannot_hold_is_named():
    assert json_grammar({"type": "string", "pattern": "^a"})[2] == ("pattern",)
    assert json_grammar({"type": "array", "items": {"multipleOf": 3, "type": "integer"}})[2] == ("multipleOf",)
    assert json_grammar({"title": "x", "description": "y", "default": 1, "type": "string", "format": "date"})[2] == ()

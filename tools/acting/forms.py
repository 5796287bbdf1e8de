"""The form that a reply is to have -> the Rule that holds it there. What a grammar costs to make is paid once."""
import json
from collections import OrderedDict
from dataclasses import dataclass

from tools.acting.masks import Automaton, Tokens
from tools.acting.rule import Rule
from tools.acting.schema import SchemaError, call_grammar, json_grammar
from tools.template import CALL, END, THINK, compact, function_of

KEPT = 24                       # automata, and
LARGEST = 20000                 # states of one before it is made anew
_kept = OrderedDict()


@dataclass(frozen=True)
class Form:
    """tools: definitions as JSON text, "" for none. name: the function that has to be called; must: any has to be;
    most: calls at most, None: no end. text: a JSON schema as text that what is said has to fit, "" for none."""
    tools: str = ""
    name: str | None = None
    must: bool = False
    most: int | None = None
    text: str = ""

    @property
    def unheld(self):
        """Keywords that the grammar cannot hold. SchemaError for what is no schema."""
        found = set(call_grammar(json.loads(self.tools), self.name)[2] if self.tools else ())
        return tuple(sorted(found.union(json_grammar(json.loads(self.text))[2] if self.text else ())))

    def rule(self, vocab, width, room, acts=(), thinking="auto"):
        """The Rule of one reply of at most `room` ids. acts: what the model has learned. width: entries of its logits.
        None where the reply is free. SchemaError."""
        if vocab.dialogue:
            if self.tools or self.text:
                raise SchemaError("别家的底座还不能用工具，也不能照格式写 JSON")
            return None
        names = ("think", "thought", "call", "called", "end")
        marks = dict(zip(names, (vocab.id(mark) for mark in (*THINK, *CALL, END))))
        calls = _automaton("calls", self.tools, self.name, vocab, width) if self.tools else None
        text = _automaton("text", self.text, None, vocab, width) if self.text else None
        if not (calls or text or "calls" in acts):
            return None
        return Rule(room, marks, width, calls, text, self.must, self.most, "thinking" in acts and thinking == "auto",
                    thinking)


def any_object():
    """The form of response_format json_object."""
    return compact({"type": "object"})


def _automaton(kind, text, name, vocab, width):
    key, tokens_key = (kind, text, name, vocab.hash, width), ("tokens", vocab.hash, width)
    found = _kept.get(key)
    if found is None or len(found.states) > LARGEST:
        tokens = _kept.get(tokens_key)
        if tokens is None:
            tokens = _kept[tokens_key] = Tokens(vocab, width)
        value = json.loads(text)
        grammar, start, _ = call_grammar(value, name) if kind == "calls" else json_grammar(value)
        found = _kept[key] = Automaton(grammar, start, tokens)
    for one in (tokens_key, key):
        if one in _kept:
            _kept.move_to_end(one)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return found


def names_of(tools):
    """The names of the tools on offer, as JSON text."""
    return {function_of(one)["name"] for one in json.loads(tools or "[]")}


def offered_of(messages):
    """The tools on offer in a conversation, as JSON text; "" for none."""
    return next((m["content"] for m in messages if m["role"] == "tools"), "")

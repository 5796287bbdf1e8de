"""A grammar of bytes over a vocabulary of tokens: which ids may come next, and with which the sentence ends.

Masks belong to states and are kept: most of a call runs through states that other calls have seen. A token inside of a
string is told by its length alone, all others by a walk through the tree of the vocabulary's bytes.
"""
import torch

from tools.acting.grammar import ASCII, CHARACTER, Repeat, TEXT_ITEM


class Tokens:
    """A vocabulary as bytes. width: entries of a model's logits. ids below `reserved` bytes give none and never come.
    """

    def __init__(self, vocab, width):
        self.vocab, self.width, self.of_byte = vocab, width, {}
        self.tree, self.odd = {}, {}            # byte -> (subtree, ids that end here); odd: without the plain tokens
        plain = {}
        for index in range(min(len(vocab), width)):
            raw = vocab.decode_bytes([index])
            if not raw:
                continue
            if len(raw) == 1:
                self.of_byte.setdefault(raw[0], index)
            size = _plain(raw)
            _put(self.tree, raw, index)
            if size:
                plain.setdefault(size, []).append(index)
            else:
                _put(self.odd, raw, index)
        self.plain = {size: torch.tensor(ids) for size, ids in plain.items()}    # characters -> ids

    def spelled(self, raw):
        """Bytes -> ids; what is no whole character at the beginning becomes bytes."""
        at = 0
        while at < len(raw) and 0x80 <= raw[at] < 0xC0:
            at += 1
        rest = self.vocab.encode(raw[at:].decode()) if at < len(raw) else []
        return (*(self.of_byte[byte] for byte in raw[:at]), *rest)


def _plain(raw):
    """How many characters of a JSON string these bytes are; 0 if they are none, or an escape."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return 0
    return 0 if any(c in '"\\' or c < " " for c in text) else len(text)


def _put(tree, raw, index):
    for byte in raw[:-1]:
        tree = tree.setdefault(byte, ({}, []))[0]
    tree.setdefault(raw[-1], ({}, []))[1].append(index)


class State:
    """complete: the sentence may end here. next: {id: State behind it}. plan: the ids that end it soonest. groups:
    [(State, tensors of the ids that lead there)], needs: tokens that each of these needs to its end, worst: the most
    of them; whole (width,): all these ids."""

    def __init__(self, stacks):
        self.stacks, self.complete, self.next = stacks, () in stacks, {}
        self.plan = self.groups = self.needs = self.worst = self.whole = None


class Automaton:
    """States of one grammar over one vocabulary."""

    def __init__(self, grammar, start, tokens):
        self.grammar, self.tokens, self.states = grammar, tokens, {}
        self.start = self._state(grammar.ready((start,)))

    def _state(self, stacks):
        if stacks not in self.states:
            self.states[stacks] = State(stacks)
        return self.states[stacks]

    def after(self, state, token):
        """The state behind one more id, None where it cannot come."""
        if token not in state.next:
            stacks = state.stacks
            for byte in self.tokens.vocab.decode_bytes([token]):
                stacks = self.grammar.step(stacks, byte)
            state.next[token] = self._state(stacks) if stacks else None
        return state.next[token]

    def plan(self, state):
        if state.plan is None:
            state.plan = self.tokens.spelled(self.grammar.ending(state.stacks))
        return state.plan

    def mask(self, state, room):
        """Which ids may come when `room` tokens are left, this one and the one that closes among them -> (width,)
        bool. The next id of a plan that the caller follows is always one of them, and left to the caller."""
        if state.groups is None:
            state.groups = [(self._state(stacks), parts) for stacks, parts in self._walk(state.stacks).items()]
            state.needs = [len(self.plan(one)) + 2 for one, _ in state.groups]
            state.worst = max(state.needs, default=0)
            state.whole = self._mask(state, state.worst)
        return state.whole if room >= state.worst else self._mask(state, room)

    def _mask(self, state, room):
        allowed = torch.zeros(self.tokens.width, dtype=torch.bool)
        for need, (_, parts) in zip(state.needs, state.groups):
            for ids in parts if need <= room else ():
                allowed[ids] = True
        return allowed

    def _walk(self, stacks):
        """-> {stacks behind it: tensors of ids} for every token that may come."""
        groups = {}
        tail = self._inside(stacks)
        tree = self.tokens.tree
        if tail:
            tree = self.tokens.odd
            for size, ids in self.tokens.plain.items():
                rest = tail[0].after(size)
                if rest:
                    groups.setdefault(self.grammar.ready((rest, *tail[1:])), []).append(ids)
        found = {}
        self._down(tree, stacks, found)
        for behind, ids in found.items():
            groups.setdefault(behind, []).append(torch.tensor(ids))
        return groups

    def _inside(self, stacks):
        """The stack of a state that is inside of a string between two characters, and nothing else; None otherwise."""
        tails = {stack[1:] for stack in stacks if stack and stack[0] is ASCII}
        tail = tails.pop() if len(tails) == 1 else ()
        text = tail and isinstance(tail[0], Repeat) and tail[0].item == TEXT_ITEM
        if not text:
            return None
        # one character has been there to make this tail: the state in front of it
        for most in (tail[0].most, None if tail[0].most is None else tail[0].most + 1):
            for least in (tail[0].least, tail[0].least + 1):
                whole = (tail[0]._replace(least=least, most=most), *tail[1:])
                if self.grammar.ready(whole) == stacks:
                    return whole
        return None

    def _down(self, tree, stacks, found):
        for byte in _firsts(stacks) & tree.keys():
            subtree, ids = tree[byte]
            behind = self.grammar.step(stacks, byte)
            if ids:
                found.setdefault(behind, []).extend(ids)
            if subtree:
                self._down(subtree, behind, found)


def _firsts(stacks):
    """The bytes that may come."""
    found = set()
    for stack in stacks:
        if stack:
            found |= {stack[0][0]} if isinstance(stack[0], bytes) else stack[0]
    return found


assert CHARACTER[0] == (ASCII,)                 # what _inside looks for

"""A grammar over bytes: what may come next, and by which shortest way it ends.

A sentence is derived from a stack of symbols, top first:
    bytes            these bytes, one after the other
    frozenset        one byte of the set
    anything else    a symbol with `ways(grammar)`, the stacks that may stand in its place, and `shortest(grammar)`
A state is the frozenset of all stacks that are still possible, each with a byte on top or empty (the sentence may end).
Our own rather than a library: the ones there are come compiled, and none of them knows that a reply has to end within
a number of tokens.
"""
from typing import NamedTuple

CONTINUED = frozenset(range(0x80, 0xC0))
ASCII = frozenset(range(0x20, 0x80)) - frozenset(b'"\\')
DIGIT = frozenset(b"0123456789")
HEX = frozenset(b"0123456789abcdef")
LONGEST = 1 << 16               # bytes of the shortest sentence of any part: no reply has room for more
WAYS = 128                      # in which a sentence may go on at the same time: the others are not pursued
DIGITS = 15                     # of a number before its point: more would not survive a float
FRACTION = 6                    # and behind it
# A character inside of a JSON string: whole UTF-8 (RFC 3629) or an escape; of \u only what has no shorter one.
CHARACTER = ((ASCII,), (b"\\", frozenset(b'"\\bfnrt')), 
             (b"\\u000", frozenset(b"01234567bef")), (b"\\u001", HEX),
             (frozenset(range(0xC2, 0xE0)), CONTINUED),
             (b"\xe0", frozenset(range(0xA0, 0xC0)), CONTINUED),
             (frozenset((*range(0xE1, 0xED), 0xEE, 0xEF)), CONTINUED, CONTINUED),
             (b"\xed", frozenset(range(0x80, 0xA0)), CONTINUED),
             (b"\xf0", frozenset(range(0x90, 0xC0)), CONTINUED, CONTINUED),
             (frozenset(range(0xF1, 0xF4)), CONTINUED, CONTINUED, CONTINUED),
             (b"\xf4", frozenset(range(0x80, 0x90)), CONTINUED, CONTINUED))


class TooLong(ValueError):
    """What a grammar asks for is longer than any reply."""


class Value(NamedTuple):
    """One of the grammar's nodes."""
    node: int

    def ways(self, grammar):
        return grammar.nodes[self.node]

    def shortest(self, grammar):
        return grammar.best[self.node]


class Repeat(NamedTuple):
    """`item`, a stack, at least `least` and at most `most` times (None: no end)."""
    item: tuple
    least: int = 0
    most: int | None = None

    def after(self, count):
        """What is left when `count` of them have been there; None if that is too many."""
        if self.most is not None and count > self.most:
            return None
        return Repeat(self.item, max(0, self.least - count), None if self.most is None else self.most - count)

    def ways(self, grammar):
        rest = self.after(1)
        return ([(*self.item, rest)] if rest else []) + [()] * (not self.least)

    def shortest(self, grammar):
        once = joined(grammar, self.item, LONGEST // self.least) if self.least else b""
        return None if once is None else once * self.least


class Members(NamedTuple):
    """The members of an object that are not there yet, in any order; left: numbers of keys of grammar.objects[table].
    """
    table: int
    left: frozenset
    first: bool = True

    def ways(self, grammar):
        keys = grammar.objects[self.table]
        mark = b"" if self.first else b", "
        found = [(mark + keys[i].text, keys[i].value, Members(self.table, self.left - {i}, False))
                 for i in sorted(self.left)]
        return found + [()] * (not any(keys[i].required for i in self.left))

    def shortest(self, grammar):
        keys = grammar.objects[self.table]
        parts = [joined(grammar, (keys[i].text, keys[i].value)) for i in sorted(self.left) if keys[i].required]
        if None in parts:
            return None
        if sum(map(len, parts)) > LONGEST:
            raise TooLong
        return (b", " if parts and not self.first else b"") + b", ".join(parts)


class Key(NamedTuple):
    text: bytes                 # with quotes, colon and space
    value: Value
    required: bool


class Between(NamedTuple):
    """The rest of a whole number in low..high, of which `digits` have been written."""
    low: int
    high: int
    digits: str = ""

    def reach(self):
        """The least number in reach, None if there is none."""
        if self.digits in ("", "0"):
            return self._within(0, 10 ** DIGITS - 1) if not self.digits else self._within(0, 0)
        number = int(self.digits)
        for more in range(DIGITS - len(self.digits) + 1):
            found = self._within(number * 10 ** more, (number + 1) * 10 ** more - 1)
            if found is not None:
                return found
        return None

    def _within(self, low, high):
        return max(low, self.low) if max(low, self.low) <= min(high, self.high) else None

    def ways(self, grammar):
        after = [Between(self.low, self.high, self.digits + digit) for digit in "0123456789"]
        found = [] if self.digits == "0" else [(one.digits[-1:].encode(), one) for one in after
                                               if one.reach() is not None]
        return found + [()] * (bool(self.digits) and self._within(int(self.digits), int(self.digits)) is not None)

    def shortest(self, grammar):
        return str(self.reach()).encode()[len(self.digits):]


def joined(grammar, stack, most=None):
    """The shortest bytes that a stack may become; None while a node's are not known. TooLong beyond `most` bytes."""
    parts = [shortest(grammar, symbol) for symbol in stack]
    if None in parts:
        return None
    if most is not None and sum(map(len, parts)) > most:
        raise TooLong
    return b"".join(parts)


def shortest(grammar, symbol):
    if isinstance(symbol, bytes):
        return symbol
    return bytes([min(symbol)]) if isinstance(symbol, frozenset) else symbol.shortest(grammar)


class Grammar:
    """nodes[i]: the stacks that Value(i) stands for; best[i]: the shortest of what it may become; objects: tables of
    keys, see Members."""

    def __init__(self):
        self.nodes, self.objects, self.best, self._ready = [list(CHARACTER)], [], [], {}

    def add(self, ways=()):
        self.nodes.append(list(ways))
        return Value(len(self.nodes) - 1)

    def close(self):
        """All nodes are there: find the shortest way through each. -> numbers of those that never end. TooLong"""
        self.best = [None] * len(self.nodes)
        changed = True
        while changed:
            changed = False
            for i, ways in enumerate(self.nodes):
                found = [one for one in (joined(self, way, LONGEST) for way in ways) if one is not None]
                best = min(found, key=len, default=None)
                if best is not None and (self.best[i] is None or len(best) < len(self.best[i])):
                    self.best[i], changed = best, True
        return [i for i, best in enumerate(self.best) if best is None]

    def ready(self, stack):
        """The stacks with a byte on top, or empty, that a stack may become."""
        if not stack or isinstance(stack[0], (bytes, frozenset)):
            return frozenset((stack,))
        if stack not in self._ready:
            found, seen, left = set(), set(), [stack]
            while left:
                one = left.pop()
                if not one or isinstance(one[0], (bytes, frozenset)):
                    found.add(one)
                elif one not in seen:                       # a node may stand in its own place
                    seen.add(one)
                    left += [tuple(way) + one[1:] for way in one[0].ways(self)]
            self._ready[stack] = frozenset(found)
        return self._ready[stack]

    def step(self, stacks, byte):
        """The state behind one more byte; empty where it cannot come."""
        after = set()
        for stack in stacks:
            top = stack[0] if stack else b"\0"
            if isinstance(top, bytes):
                if stack and top[0] == byte:
                    after |= self.ready((top[1:], *stack[1:]) if len(top) > 1 else stack[1:])
            elif byte in top:
                after |= self.ready(stack[1:])
        return frozenset(after if len(after) <= WAYS else self._few(after))

    def _few(self, stacks):
        """Unions in unions double the ways with each level: those that end soonest are kept. What is written fits all
        the same."""
        tails = {stack[1:] for stack in stacks}
        if len(tails) > WAYS:
            tails = set(sorted(tails, key=lambda tail: (len(joined(self, tail)), str(tail)))[:WAYS])
        return [stack for stack in stacks if stack[1:] in tails]

    def ending(self, stacks):
        """The shortest bytes with which a sentence in this state ends."""
        return min((joined(self, stack) for stack in stacks), key=lambda way: (len(way), way))


TEXT_ITEM = (Value(0),)         # a character, see CHARACTER

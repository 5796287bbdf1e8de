"""The ids of a reply turned into text as they come: whole characters, told apart into thought, calls and what is
said."""

import codecs

from tools.template import CALL, THINK, parsed_call

SAID, THOUGHT, CALLED = "content", "thinking", "call"


class Characters:
    """Bytes to text without ever showing half a character, or anything from the first of the strings `stops` on.

    Bytes that form no character become U+FFFD, as soon as that is certain. `stopped`: a stop string is complete.
    """

    def __init__(self, vocab, stops=()):
        self.vocab, self.stops = vocab, tuple(stops)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.stopped = "", False         # text that may be the beginning of a stop string

    def feed(self, ids):
        """The characters that these ids complete; "" while one is under way."""
        return self._certain(self.decoder.decode(self.vocab.decode_bytes(ids)))

    def end(self):
        """What was held back, and what is left of a character that was never completed."""
        return "" if self.stopped else self._certain(self.decoder.decode(b"", final=True)) + self.held

    def _certain(self, piece):
        text = self.held + piece
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        keep = min(found) if found else len(text) - max((_begun(text, stop) for stop in self.stops), default=0)
        self.stopped = bool(found)
        self.held = "" if found else text[keep:]
        return text[:keep]


def _begun(text, stop):
    """How many characters at the end of `text` are a beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Piece(str):
    """Some characters of a reply; kind: SAID, THOUGHT or CALLED; scored: see server/writing.py."""

    kind, scored = SAID, ()

    @classmethod
    def of(cls, kind, text):
        piece = cls(text)
        piece.kind = kind
        return piece


class Spoken:
    """One reply as it comes. Marks decide what is what; strings that end a reply do so only in what is said."""

    def __init__(self, vocab, stops=(), thinking="auto"):
        """thinking: how the prompt ended, see template.render_prompt."""
        self.vocab, self.stops, self.stopped, self.empty = vocab, stops, False, True
        self.thought, self.calls, self.said = None if thinking == "auto" else "", [], ""
        ours = () if vocab.dialogue else ((THINK, THOUGHT), (CALL, CALLED))
        self.marks = {vocab.id(mark): kind for marks, kind in ours for mark, kind in zip(marks, (kind, SAID))}
        self._begin(THOUGHT if thinking == "on" else SAID)

    def _begin(self, kind):
        self.kind, self.characters = kind, Characters(self.vocab, self.stops if kind == SAID else ())

    def feed(self, ids):
        """-> the Pieces that these ids complete."""
        pieces = []
        for one in ids:
            if one in self.marks:
                pieces += self._turn(self.marks[one])
            else:
                pieces += self._kept(self.characters.feed([one]))
                self.stopped = self.characters.stopped
        return pieces

    def _turn(self, kind):
        pieces = self._kept(self.characters.end())
        self._begin(kind)
        if kind == CALLED:
            self.calls.append("")
        elif kind == THOUGHT:
            self.thought = self.thought or ""
        return pieces

    def end(self):
        """What was held back. -> Pieces"""
        return self._kept(self.characters.end())

    def _kept(self, text):
        if not text:
            return []
        self.empty = False
        if self.kind == THOUGHT:
            self.thought = (self.thought or "") + text
        elif self.kind == CALLED:
            self.calls[-1] += text
        else:
            self.said += text
        return [Piece.of(self.kind, text)]

    def broken(self):
        """What was written as a call and is none."""
        return [call for call in self.calls if not parsed_call(call)]

    def message(self):
        """The reply as the conversation goes on with it. What is no call stays out of it, see `broken`."""
        good = [call for call in self.calls if parsed_call(call)]
        return {"role": "assistant", "content": self.said,
                **({} if self.thought is None else {"thinking": self.thought}),
                **({"calls": good} if good else {})}


def heard(ids, vocab):
    """A whole reply -> Spoken."""
    spoken = Spoken(vocab)
    spoken.feed(ids)
    spoken.end()
    return spoken

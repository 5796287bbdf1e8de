"""The ids of one reply turned into text as they come: whole characters, and nothing of a stop string."""

from chat_agent.session import Characters
from model.loop_guard import LoopGuard


class Writer:
    """`add` takes the next id and says why the reply is over, if it is; `take` hands out the text that is certain by now.

    stop_ids: ids that end the reply; stops: strings that do. Neither becomes part of the text. finish: "stop" or "length", as OpenAI
    calls them; a reply that goes round in circles is cut and counts as "length".
    """

    def __init__(self, vocab, room, stop_ids=(1,), stops=()):
        self.characters, self.room, self.stop_ids, self.stops = Characters(vocab), room, stop_ids, tuple(stops)
        self.ids, self.loops, self.finish = [], LoopGuard(), None
        self.held, self.pieces = "", []             # text that may be the beginning of a stop string; text to hand out

    def add(self, new):
        """-> None, or the reason why this was the last id."""
        if new in self.stop_ids:
            return self.end("stop")
        self.ids.append(new)
        if self._text(self.characters.feed([new])):
            self.finish = "stop"
        elif self.loops.add(new) or len(self.ids) >= self.room:
            self.end("length")
        return self.finish

    def end(self, finish):
        """No more ids will come: what was held back is text after all."""
        if self.finish is None:
            stopped = self._text(self.characters.end())
            self.pieces += [] if stopped else [self.held]
            self.finish = "stop" if stopped else finish
        return self.finish

    def take(self):
        """The text since the last call."""
        text, self.pieces = "".join(self.pieces), []
        return text

    def _text(self, piece):
        """Whether a stop string is complete now."""
        if not self.stops:
            self.pieces.append(piece)
            return False
        text = self.held + piece
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        keep = min(found) if found else len(text) - max(_begun(text, stop) for stop in self.stops)
        self.pieces.append(text[:keep])
        self.held = "" if found else text[keep:]
        return bool(found)


def _begun(text, stop):
    """How many characters at the end of `text` are a beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0

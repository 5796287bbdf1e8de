"""One reply of the engine as it is written: its ids, its text, why it ended."""

from chat_agent.spoken import Spoken
from model.decoding.loop_guard import LoopGuard


class Writer:
    """`add` takes the next id and says why the reply is over, if it is; `take` hands out the Pieces that are certain by
    now.

    stop_ids: ids that end the reply; stops: strings that do. Neither becomes part of the text. finish: "stop" or
    "length", as OpenAI calls them; a reply that goes round in circles is cut and counts as "length".
    """

    def __init__(self, vocab, room, stop_ids=(1,), stops=(), thinking="auto"):
        self.spoken, self.room, self.stop_ids = Spoken(vocab, stops, thinking), room, stop_ids
        self.ids, self.loops, self.finish = [], LoopGuard(), None
        self.pieces = []                            # to hand out

    def add(self, new):
        """-> None, or the reason why this was the last id."""
        if new in self.stop_ids:
            return self.end("stop")
        self.ids.append(new)
        self.pieces += self.spoken.feed([new])
        if self.spoken.stopped:
            self.finish = "stop"
        elif self.loops.add(new) or len(self.ids) >= self.room:
            self.end("length")
        return self.finish

    def end(self, finish):
        """No more ids will come: what was held back is text after all."""
        if self.finish is None:
            self.pieces += self.spoken.end()
            self.finish = "stop" if self.spoken.stopped else finish
        return self.finish

    def take(self):
        """The Pieces since the last call."""
        pieces, self.pieces = self.pieces, []
        return pieces

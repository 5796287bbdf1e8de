"""The ids of one reply turned into text as they come: whole characters, and nothing of a stop string."""

from chat_agent.session import Characters
from model.decoding.loop_guard import LoopGuard


class Writer:
    """`add` takes the next id and says why the reply is over, if it is; `take` hands out the text that is certain by
    now.

    stop_ids: ids that end the reply; stops: strings that do. Neither becomes part of the text. finish: "stop" or
    "length", as OpenAI calls them; a reply that goes round in circles is cut and counts as "length".
    """

    def __init__(self, vocab, room, stop_ids=(1,), stops=()):
        self.characters, self.room, self.stop_ids = Characters(vocab, stops), room, stop_ids
        self.ids, self.loops, self.finish = [], LoopGuard(), None
        self.pieces, self.shown = [], False         # text to hand out; whether any was

    def add(self, new):
        """-> None, or the reason why this was the last id."""
        if new in self.stop_ids:
            return self.end("stop")
        self.ids.append(new)
        self.pieces.append(self.characters.feed([new]))
        if self.characters.stopped:
            self.finish = "stop"
        elif self.loops.add(new) or len(self.ids) >= self.room:
            self.end("length")
        return self.finish

    def end(self, finish):
        """No more ids will come: what was held back is text after all."""
        if self.finish is None:
            self.pieces.append(self.characters.end())
            self.finish = "stop" if self.characters.stopped else finish
        return self.finish

    def take(self):
        """The text since the last call."""
        text, self.pieces = "".join(self.pieces), []
        self.shown = self.shown or bool(text)
        return text

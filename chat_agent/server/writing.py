"""One reply of the engine as it is written: its ids, its text, why it ended."""

from typing import NamedTuple

from tools.acting.spoken import SAID, Piece, Spoken
from model.decoding.loop_guard import LoopGuard
from model.sampling import Sampling


class Scored(NamedTuple):
    """How likely an id of the reply was: natural logarithms by the model itself, before temperature and penalties.
    rivals: (id, logarithm) of the likeliest; start: where its bytes begin in what is said."""

    id: int
    logprob: float
    rivals: list
    start: int


class Writer:
    """`add` takes the next id and says why the reply is over, if it is; `take` hands out the Pieces that are certain by
    now.

    The stop ids of `how` and the strings `stops` end the reply. Neither becomes part of the text. finish: "stop" or
    "length", as OpenAI calls them; a reply that goes round in circles is cut and counts as "length". top: how many
    rivals of each id that is said are wanted, None = no scores; `scored`: what became of that. how: Sampling, which
    says whether a form holds what comes next: that is not cut for going round in circles.
    """

    def __init__(self, vocab, room, how=Sampling(), stops=(), thinking="auto", top=None):
        self.vocab, self.spoken, self.room, self.how = vocab, Spoken(vocab, stops, thinking), room, how
        self.ids, self.loops, self.finish = [], LoopGuard(), None
        self.pieces = []                            # to hand out
        self.top, self.scored, self.told, self.size = top, [], 0, 0

    def add(self, new, logprobs=None):
        """-> None, or the reason why this was the last id. logprobs (V,): the model's own, where scores are wanted."""
        if new in self.how.stop_ids:
            return self.end("stop")
        self.ids.append(new)
        if logprobs is not None and self.spoken.kind == SAID and new not in self.spoken.marks:
            self._score(new, logprobs)
        self.pieces += self.spoken.feed([new])
        if self.spoken.stopped:
            self.finish = "stop"
        elif self.loops.add(new) and not self.how.held(self.ids) or len(self.ids) >= self.room:
            self.end("length")
        return self.finish

    def end(self, finish):
        """No more ids will come: what was held back is text after all."""
        if self.finish is None:
            self.pieces += self.spoken.end()
            self.finish = "stop" if self.spoken.stopped else finish
        return self.finish

    def _score(self, new, logprobs):
        best = logprobs.topk(min(self.top, len(logprobs)))
        rivals = list(zip(best.indices.tolist(), best.values.tolist()))
        self.scored.append(Scored(new, logprobs[new].item(), rivals, self.size))
        self.size += len(self.vocab.decode_bytes([new]))

    def take(self):
        """The Pieces since the last call; the scores of ids that have become text lie in `scored` of the last one."""
        pieces, self.pieces = self.pieces, []
        if self.top is not None:
            scored = self._certain()
            if scored and not any(piece.kind == SAID for piece in pieces):
                pieces.append(Piece.of(SAID, ""))
            for piece in [piece for piece in pieces if piece.kind == SAID][-1:]:
                piece.scored = scored
        return pieces

    def _certain(self):
        """Scores to hand out: of ids that are part of the text by now, at the end of all that will ever be."""
        said = len(self.spoken.said.encode())
        if self.spoken.stopped:
            self.scored = [one for one in self.scored if one.start < said]
        told, ended = self.told, self.finish and not self.spoken.stopped
        self.told = len(self.scored) if ended else sum(one.start < said for one in self.scored)
        return self.scored[told:self.told]

"""Replies as a training needs them: every id that was drawn and what it was drawn from, and, where there are tools, the
calls, their results and what the model says to these. Results are context: the model did not draw them.
"""

from dataclasses import dataclass, field

import torch

from model.generate import generate_replies
from model.sampling import Sampling
from tools.acting.forms import Form, offered_of
from tools.acting.spoken import heard
from tools.acting.toolbox import FAILED, ROUNDS
from tools.template import continuation, structure_of

SIDE_BY_SIDE = 128      # replies that are written at once


@dataclass
class Episode:
    """A question and all that followed. messages: the conversation, what the model did from message `own` on; ids: the
    same as a document, as it was drawn. Of each drawn id: its place in ids, log p, and what it was drawn from, (V,)
    bool, None = whatever a model may write (Speaker.free). length: drawn ids but ends; finish: of the last reply."""
    messages: list
    ids: list
    own: int = 0
    places: list = field(default_factory=list)
    log_p: list = field(default_factory=list)
    allowed: list = field(default_factory=list)
    length: int = 0
    finish: str = "length"

    def take(self, reply, vocab):
        begin = len(self.ids)
        self.messages.append(heard(reply.ids, vocab).message())
        self.ids = [*self.ids, *reply.drawn]
        self.places += range(begin, len(self.ids))
        self.log_p += reply.log_p
        self.allowed += reply.allowed or [None] * len(reply.log_p)
        self.length, self.finish = self.length + len(reply.ids), reply.finish

    @property
    def said(self):
        """The final answer; "" where it came to none."""
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" and not last.get("calls") else ""

    @property
    def before(self):
        """The messages that the final answer answers."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    @property
    def used(self):
        """[(call as text, its result or None)] of the calls that the model made."""
        return calls_in(self.messages[self.own:])

    @property
    def failures(self):
        return sum(result is None or result.startswith(FAILED) for _, result in self.used)

    def shown(self):
        """What happened, in a line: calls with their results, and the answer."""
        steps = [f"{call} → {'（没有执行）' if result is None else result}" for call, result in self.used]
        return " ".join("；".join([*steps, self.said]).split())


def calls_in(messages):
    """[(call as text, its result, None where it was not carried out)] of all calls in these messages."""
    found, waiting = [], []
    for message in messages:
        if message["role"] == "tool" and waiting:
            found[waiting.pop(0)][1] = message["content"]
        elif message["role"] == "assistant":
            waiting = list(range(len(found), len(found) + len(message.get("calls", ()))))
            found += [[call, None] for call in message.get("calls", ())]
    return [tuple(one) for one in found]


class Speaker:
    """How a model may speak: acts, what it has learned beside words; box: the tools that answer its calls, or None.
    width: entries of its logits; context: ids of a whole conversation. What it writes is held to the form of the chat:
    calls as their tools' schemas want them, none where none are on offer."""

    def __init__(self, vocab, acts, width, context, box=None):
        self.vocab, self.acts, self.width, self.context, self.box = vocab, acts, width, context, box
        self.structure = structure_of(vocab, acts)
        self.free = Sampling(**self.structure).allowed(torch.zeros(1, width), [[]])[0] > float("-inf")

    def episodes(self, model, questions, room, seeds=None, **how):
        """questions: [(messages, their prompt's ids)]; room: ids of one reply; seeds: a str for each -> Episodes.

        Where calls are answered, the model goes on, up to ROUNDS times; the reply after those cannot call.
        """
        made = [Episode(list(talk), ids, len(talk)) for talk, ids in questions]
        going = list(range(len(made)))
        for number in range(ROUNDS + 1):
            turn = "" if number == 0 else f"/{number}"
            own = None if seeds is None else [seeds[i] + turn for i in going]
            self._speak(model, [made[i] for i in going], room, own, may_call=number < ROUNDS, **how)
            going = [i for i in going if self._answered(made[i], room)]
            if not going:
                return made
        return made

    def _speak(self, model, episodes, room, seeds, may_call, **how):
        offers = [offered_of(one.messages) if may_call and self.box else "" for one in episodes]
        rules = {text: Form(text).rule(self.vocab, self.width, room, self.acts) for text in set(offers)}
        replies = generate_replies(model, [one.ids for one in episodes], room, SIDE_BY_SIDE, seed=seeds,
                                   rule=[rules[text] for text in offers], **self.structure, **how)
        for episode, reply in zip(episodes, replies):
            episode.take(reply, self.vocab)

    def _answered(self, episode, room):
        """Carry out the calls of the last reply -> whether the model has to speak again."""
        calls = episode.messages[-1].get("calls", ())
        if not self.box or not calls or episode.finish != "stop":
            return False
        results = [message for *_, message in self.box.carried_out(calls, self.vocab, self.context)]
        episode.messages += results
        more = continuation(results, self.vocab)
        if len(episode.ids) + len(more) + room > self.context:
            episode.finish = "length"
            return False
        episode.ids = [*episode.ids, *more]
        return True

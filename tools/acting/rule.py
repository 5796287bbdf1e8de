"""What one reply may be: [thought] [calls] text, its calls and, where that is asked for, its text held to a grammar.

A Rule is a function of the ids written so far; `model.sampling.Sampling` asks it before each choice. It counts tokens:
what it has let begin can always be ended within the room that is left, and it sees to it that it is.
"""
from dataclasses import dataclass, field

import torch

OPEN, THINKING, CALLING, WRITING, DONE = range(5)      # WRITING: text that a grammar holds


@dataclass
class Place:
    """Where a reply is after `count` ids; plan: ids that end what is being written, `at`: how far along."""
    ids: list
    mode: int
    count: int = 0
    calls: int = 0
    spoken: bool = False        # it has begun to say something
    state: object = None
    plan: tuple = ()
    at: int = 0


@dataclass(eq=False)
class Rule:
    """room: ids that the reply may have. marks: ids by name (think, thought, call, called, end). calls, text: an
    Automaton or None. must: a call has to come. most: calls at most. thinks: it may think first; thinking: how the
    prompt ended, see tools/template.render_prompt. width: entries of the logits."""
    room: int
    marks: dict
    width: int
    calls: object = None
    text: object = None
    must: bool = False
    most: int | None = None
    thinks: bool = False
    thinking: str = "auto"
    places: dict = field(default_factory=dict)

    def look(self, ids):
        """-> (allowed ids (width,) bool or None for all; whether the form decides: penalties do not count then)."""
        place = self._place(ids)
        left = self.room - len(ids)
        if place.mode in (CALLING, WRITING):
            return self._written(place, left), True
        if place.mode == THINKING:
            return self._thinking(left)
        if place.mode == DONE or self.must and not place.calls or self.text:
            return self._opening(place, left), True
        if self._may_call(place, left):
            return None, False
        return self._without("call", "called"), False

    def least(self):
        """Ids that a reply of this form has at least."""
        return self._need() if self.must or self.text else 0

    def _need(self):
        """Ids from here to the end of the shortest reply of the form that is asked for."""
        if self.must:
            return len(self.calls.plan(self.calls.start)) + 3           # the marks around it, and the end
        return len(self.text.plan(self.text.start)) + 1

    def _may_call(self, place, left):
        wanted = self.calls is not None and (self.most is None or place.calls < self.most) and not place.spoken
        return wanted and left >= len(self.calls.plan(self.calls.start)) + 3

    def _thinking(self, left):
        bound = self.must or self.text
        if bound and left <= self._need() + 1:
            return self._only("thought"), True
        return self._without("call", "called", "think", *(["end"] if bound else [])), False

    def _opening(self, place, left):
        """Before what has to come, or behind it."""
        names = ["call"] if self._may_call(place, left) else []
        if place.calls or place.mode == DONE:
            return self._only("end", *(names if place.mode == OPEN else []))
        if self.thinks and not place.count and left > self._need() + 2:
            names.append("think")
        allowed = self._only(*names)
        if self.text and not self.must:
            allowed |= self.text.mask(self.text.start, left)
            plan = self.text.plan(self.text.start)
            if plan:
                allowed[plan[0]] = True
        return allowed

    def _written(self, place, left):
        automaton, close = (self.calls, "called") if place.mode == CALLING else (self.text, "end")
        behind = 1 if place.mode == CALLING else 0                      # the end behind the mark of a call
        allowed = automaton.mask(place.state, left - behind).clone()
        if place.at < len(place.plan):
            allowed[place.plan[place.at]] = True
        if place.state.complete:
            allowed[self.marks[close]] = True
        return allowed

    def _only(self, *names):
        allowed = torch.zeros(self.width, dtype=torch.bool)
        allowed[[self.marks[name] for name in names]] = True
        return allowed

    def _without(self, *names):
        allowed = torch.ones(self.width, dtype=torch.bool)
        allowed[[self.marks[name] for name in names]] = False
        return allowed

    # ---- following the ids

    def _place(self, ids):
        place = self.places.get(id(ids))
        if place is None or place.ids is not ids or place.count > len(ids):
            place = self.places[id(ids)] = Place(ids, THINKING if self.thinking == "on" else OPEN)
        while place.count < len(ids):
            self._follow(place, ids[place.count])
            place.count += 1
        return place

    def _follow(self, place, new):
        name = next((name for name, mark in self.marks.items() if mark == new), None)
        if place.mode == CALLING and name == "called":
            place.mode, place.calls = OPEN, place.calls + 1
        elif place.mode in (CALLING, WRITING):
            self._advance(place, self.calls if place.mode == CALLING else self.text, new)
        elif name == "call" and self.calls:
            place.mode = CALLING
            self._begin(place, self.calls)
        elif name in ("think", "thought"):
            place.mode = THINKING if name == "think" else OPEN
        elif place.mode == OPEN:
            place.spoken = True
            if self.text and not place.calls:
                place.mode = WRITING
                self._begin(place, self.text)
                self._advance(place, self.text, new)

    def _begin(self, place, automaton):
        place.state, place.plan, place.at = automaton.start, automaton.plan(automaton.start), 0

    def _advance(self, place, automaton, new):
        """An id that the grammar does not know (nobody asked this rule) ends what it can say."""
        state = place.state and automaton.after(place.state, new)
        if not state:
            place.mode, place.state = DONE, None
            return
        follows = place.at < len(place.plan) and place.plan[place.at] == new
        place.state, place.at, fresh = state, place.at + 1, automaton.plan(state)
        if not follows or len(fresh) < len(place.plan) - place.at:
            place.plan, place.at = fresh, 0

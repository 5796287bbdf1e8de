"""The models that are served, each under a name from the start-up list."""

from dataclasses import dataclass, field
from typing import NamedTuple

from chat_agent.server.errors import ApiError, bad, shown
from chat_agent.session import fitting, tools_size, turns, within
from model.gate import GatedExperts
from model.sampling import DEFAULTS
from tools.demo_data import TASKS
from tools.template import message_texts, render_prompt, render_text, structure_of

LEAST_LONGEST = 1024    # ids of a prompt that are read even by a model that was trained on shorter ones


class Prompt(NamedTuple):
    """ids: what the model reads; dropped: turns of the conversation that were left out because they did not fit; tools:
    how many of the ids tell of tools."""

    ids: list
    dropped: int = 0
    tools: int = 0


@dataclass
class Served:
    """One entry of the list. context: ids that a conversation should stay within; completes: it knows no dialogues;
    title: what kind of model it is; label: what people read instead of the name; sampling, prompts, acts, exam: as
    `load.talk_of` gives them; tools: definitions of those that the server runs for it."""

    name: str
    model: object
    vocab: object
    context: int
    completes: bool = False
    title: str = ""
    created: int = 0
    label: str = ""
    sampling: dict = field(default_factory=lambda: dict(DEFAULTS))
    prompts: tuple = ()
    acts: tuple = ()
    exam: tuple = ()
    tools: tuple = ()

    @property
    def structure(self):
        """What Sampling has to know: reserved ids that its replies may hold, and those that end them."""
        return structure_of(self.vocab, () if self.completes else self.acts)

    @property
    def positions(self):
        """How many positions there are, None where there is no end."""
        return self.model.config.max_position if self.model.config.position == "learned" else None

    @property
    def longest(self):
        """Ids that a prompt may have."""
        most = max(self.context, LEAST_LONGEST)
        return most if self.positions is None else min(most, self.positions)

    def model_for(self, ids):
        """The module that answers: a gate chooses one of its experts."""
        return self.model.expert_for(ids) if isinstance(self.model, GatedExperts) else self.model

    def room(self, ids, wanted):
        """How many ids may follow the prompt."""
        room = within(self.context, ids, wanted)
        return room if self.positions is None else min(room, self.positions - len(ids) + 1)

    def chat_prompt(self, messages, new_tokens, thinking="auto"):
        """Conversation -> Prompt; the oldest turns are left out where it is too long. ApiError 400 when the last one
        alone is."""
        if self.completes:
            return self.text_prompt(messages[-1]["content"])
        limit = self.context - min(new_tokens, self.context // 2) - 2 * (thinking != "auto")

        def encode():
            recent, long_ago = self._recent(messages, limit)
            kept, dropped = fitting(recent, self.vocab, limit)
            return Prompt(render_prompt(kept, self.vocab, thinking), long_ago + dropped, tools_size(kept, self.vocab))
        return self._checked(encode)

    def text_prompt(self, text):
        """Text to be continued -> Prompt. ApiError 400 when it is too long."""
        self._check_size(len(text))
        return self._checked(lambda: Prompt(render_text(text, self.vocab)[0][:-1].tolist()))

    def _recent(self, messages, limit):
        """Leaves out, before any of it is encoded, what cannot fit anyway: words have a longest.
        -> (messages, number of turns left out)"""
        system, parts = turns(messages)
        last = _size(system + (parts[-1] if parts else []))
        self._check_size(last, _size([m for m in system if m["role"] == "tools"]) > last // 2)
        room, kept = limit * self.vocab.longest - last, parts[-1:]
        for part in reversed(parts[:-1]):
            room -= _size(part)
            if room < 0:
                break
            kept.insert(0, part)
        return system + [m for part in kept for m in part], len(parts) - len(kept)

    def _check_size(self, characters, tools=False):
        if characters > self.longest * self.vocab.longest:
            raise self._too_long(tools)

    def _checked(self, encode):
        try:
            prompt = encode()
        except ValueError:
            raise bad("文字里有不能用的字符（孤立的代理字符）。", "messages") from None
        if len(prompt.ids) > self.longest:
            raise self._too_long(prompt.tools > len(prompt.ids) // 2)
        return prompt

    def _too_long(self, tools):
        """tools: most of it tells of tools."""
        what, field = ("工具的说明太长，请少给几个工具", "tools") if tools else ("这段话太长", "messages")
        return bad(f"{what}：模型 {self.name[:64]} 最多读 {self.longest} 个词元。", field, "context_length_exceeded")


def _size(messages):
    """Characters of these messages."""
    return sum(len(text) for message in messages for text in message_texts(message))


class Models:
    """name -> Served, in the order of the command line. find: where nobody named any; called before each use -> list of
    Served, or None where nothing has changed. Then the first of them answers to any name. box: the Toolbox for the
    page, or None."""

    def __init__(self, served, find=None):
        self.by_name, self.find, self.box = {one.name: one for one in served}, find, None

    def __iter__(self):
        return iter(list(self.by_name.values()))

    def look(self):
        """See whether a model has appeared meanwhile; may take as long as loading it."""
        found = self.find() if self.find else None
        if found is not None:
            self.by_name = {one.name: one for one in found}

    def get(self, name):
        """The model of that name; the only one there is answers to any name, as in llama.cpp, since many clients bring
        a fixed one. ApiError 404 otherwise, 503 while there is no model; nothing a client says is ever looked up on the
        disk."""
        if not self.by_name:
            raise ApiError(503, "还没有模型，现在只能看训练曲线。训练完成后不用重启，这里会自己用上它。", "no_model",
                           kind="server_error", retry=30)
        if name not in self.by_name and (self.find or len(self.by_name) == 1):
            return next(iter(self))
        if name is None:
            raise bad("缺少 model，有哪些见 /v1/models。", "model")
        return self.named(name)

    def named(self, name):
        """Exactly the model of that name. ApiError 404."""
        if name not in self.by_name:
            raise ApiError(404, f"没有叫 {shown(name)} 的模型，有哪些见 /v1/models。", "model_not_found", "model")
        return self.by_name[name]


def described(served):
    """An entry of /v1/models; the fields after owned_by are ours, for the page."""
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "tinyseek",
            "title": served.title, "label": served.label or served.name, "context": served.context,
            "completes": served.completes,
            "sampling": served.sampling, "prompts": list(served.prompts), "exam": len(served.exam),
            **({"tools": list(served.tools)} if served.tools else {})}


def exam_of(served):
    """The held-out questions kept in its checkpoint -> [{"title" of the task, "messages", "answer"}]."""
    return [{"title": TASKS[row["task"]].title if row.get("task") in TASKS else str(row.get("task", ""))[:32],
             "messages": row["messages"], "answer": row["answer"]} for row in served.exam]

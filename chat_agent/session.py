"""One conversation with one model: the history, and what of it is sent."""

import time

from tools.acting.forms import Form, offered_of
from tools.acting.spoken import Spoken
from model.generate import Reply, check_prompt, stream
from model.sampling import DEFAULTS
from tools.errors import UserError
from tools.template import message_texts, render_prompt, render_text, structure_of, turn_cost


def turns(messages):
    """messages -> (leading system messages and tools on offer, list of turns); a turn begins with a user's message and
    holds the replies to it and what tools gave back."""
    first = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "tools")), len(messages))
    parts = []
    for message in messages[first:]:
        if message["role"] == "user" or not parts:
            parts.append([])
        parts[-1].append(message)
    return messages[:first], parts


def fitting(messages, vocab, limit):
    """-> (the messages whose prompt has at most `limit` ids, number of turns left out): oldest whole turns go first,
    system messages and the last turn stay."""
    system, parts = turns(messages)
    sizes = [sum(_sizes(part, vocab)) for part in parts]
    total = 1 + turn_cost(vocab) + sum(_sizes(system, vocab)) + sum(sizes)  # the leading end, Assistant and the colon
    dropped = 0
    while total > limit and dropped < len(parts) - 1:
        total -= sizes[dropped]
        dropped += 1
    return system + [m for part in parts[dropped:] for m in part], dropped


def _sizes(messages, vocab):
    parts = [message_texts(m) for m in messages]
    encoded = iter(vocab.encode_many([text for texts in parts for text in texts]) if messages else [])
    return [turn_cost(vocab) + sum(len(next(encoded)) for _ in texts) + 2 * (len(texts) - 1)
            + (m["role"] == "assistant")
            for m, texts in zip(messages, parts)]


def within(context, prompt, wanted):
    """How many of the `wanted` ids may follow the prompt: as far as the context goes, and half of it after a prompt
    that is too long."""
    return min(wanted, max(context - len(prompt), context // 2))


def tools_size(messages, vocab):
    """Ids that the tools on offer take of a prompt."""
    return sum(_sizes([m for m in messages if m["role"] == "tools"], vocab))


def crowded(tools, context):
    """Why tools whose definitions take so many ids leave no room to talk (Chinese), "" where they leave some."""
    return "" if tools <= context // 4 * 3 else (
        f"光是工具的说明就有 {tools} 个词元，整段对话一共只能有 {context} 个，请少给几个工具，或写短它们的说明")


def too_long(used, context, tools):
    """What is to be said of a prompt of `used` ids, `tools` of which tell of tools: "" where nothing is."""
    why = crowded(tools, context) or f"这段话有 {used} 个词元，超过模型训练时的长度 {context}，请说短一些"
    return f"{why}，不然回答多半不可靠" if used > context else ""


class Session:
    """model, vocab: as `load` gives them. context: ids that prompt and reply share. completes: a pre-trained model that
    knows no dialogues goes on with the user's text instead of answering it, and remembers nothing.

    sampling: how it answers where nobody says otherwise. acts: what it has learned beside speaking; a model that knows
    no thoughts writes none, whatever `thinking` (auto, on, off) says. After a reply: `reply` (a Reply) and `seconds`
    say how it went, `used` how many ids the prompt had, `dropped` how many of the oldest turns were left out of it
    because they did not fit.
    """

    def __init__(self, model, vocab, context=512, completes=False, system=None, sampling=DEFAULTS, acts=()):
        self.model, self.vocab, self.context, self.completes = model, vocab, context, completes
        self.system, self.sampling, self.prepared = system, sampling, {}
        self.acts, self.thinking, self.tools = tuple(acts), "auto", ""
        self.reply, self.seconds, self.used, self.dropped = Reply(), 0.0, 0, 0
        self.clear()

    def clear(self):
        self.messages = self.head()

    def head(self):
        """What stands before all turns: the tools on offer, the system prompt."""
        given = (("tools", self.tools), ("system", self.system))
        return [{"role": role, "content": text} for role, text in given if text]

    def prompt(self, max_new_tokens):
        """The ids to go on from; the reply keeps at least half of the context for itself if it may use that much."""
        self.dropped = 0
        if self.completes:
            return render_text(self.messages[-1]["content"], self.vocab)[0][:-1].tolist()
        limit = self.context - min(max_new_tokens, self.context // 2)
        kept, self.dropped = fitting(self.messages, self.vocab, limit - 2 * (self._thinking() != "auto"))
        return render_prompt(kept, self.vocab, self._thinking())

    def _thinking(self):
        return self.thinking if "thinking" in self.acts and not self.completes else "auto"

    def ask(self, text, max_new_tokens=None, **options):
        """Yields the reply in Pieces of whole characters and keeps it in the history, also when it is broken off.

        Options: `stops`, strings that end the reply; `thinking`: auto, on or off; the rest as in model.generate.stream.
        """
        if self.completes:
            self.clear()
        self.messages.append({"role": "user", "content": text})
        yield from self._answer(max_new_tokens, {**self.sampling, **options})

    def retry(self, max_new_tokens=None, **options):
        """Throws the last reply away and yields another one. UserError if there is nothing to answer."""
        while self.messages and self.messages[-1]["role"] in ("assistant", "tool"):
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            raise UserError("还没有可以重答的问题。")
        yield from self._answer(max_new_tokens, {**self.sampling, **options})

    def go_on(self, max_new_tokens=None, may_call=True, **options):
        """Yields what the model says to the results that have been added to `messages`."""
        yield from self._answer(max_new_tokens, {**self.sampling, **options}, may_call)

    def _answer(self, wanted, options, may_call=True):
        self.reply, usual = Reply(), options.pop("max_new_tokens")
        self.thinking = options.pop("thinking", self.thinking)
        max_new_tokens = wanted or usual
        prompt = self._prompt_or_forget(max_new_tokens)
        self.used = len(prompt)
        structure = structure_of(self.vocab, () if self.completes else self.acts)
        spoken, started = Spoken(self.vocab, options.pop("stops", ()), self._thinking()), time.perf_counter()
        room = check_prompt(self.model.config, prompt, within(self.context, prompt, max_new_tokens))
        rule = None if self.completes else Form(offered_of(self.messages) if may_call else "").rule(
            self.vocab, self.model.config.vocab_size, room, self.acts, self._thinking())
        ids = stream(self.model, prompt, room, reply=self.reply, prepared=self.prepared, rule=rule,
                     **structure, **options)
        try:
            for new in ids:
                yield from spoken.feed([new])
                if spoken.stopped:
                    self.reply.finish = "stop"
                    break
            yield from spoken.end()
        finally:
            self.seconds = time.perf_counter() - started
            if not spoken.empty:  # a question without a reply can be asked again: /retry
                self.messages.append(spoken.message())

    def _prompt_or_forget(self, max_new_tokens):
        """The prompt's ids. A question that cannot be asked leaves the history again, with a UserError."""
        positions = self.model.config.max_position if self.model.config.position == "learned" else None
        try:
            ids = self.prompt(max_new_tokens)
        except ValueError:
            self.messages.pop()
            raise UserError("这句话里有不能用的字符（孤立的代理字符），请改写。") from None
        if positions and len(ids) > positions:
            self.messages.pop()
            raise UserError(f"这句话太长：模型只有 {positions} 个位置，提示要 {len(ids)} 个。请说短一些。")
        return ids

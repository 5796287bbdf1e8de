"""The shapes of OpenAI's answers: whole, or as the chunks of a stream."""

import json
import re
import secrets
import time

from tools.acting.spoken import CALLED, SAID, THOUGHT
from tools.template import compact, parsed_call


HEAD = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')     # how every call begins, see acting/schema.py
UNLIKELY = -9999.0       # OpenAI's word for a logarithm of next to nothing: JSON has none for -inf


class Answer:
    """What all parts of one answer have in common. about: what the field `tinyseek` says of the prompt (dropped_turns,
    context, prompt_tokens, notices); no other server sends it, and clients pass over it."""

    def __init__(self, ask, served, about):
        self.about, self.ask, self.vocab = about, ask, served.vocab
        self.chat, self.model, self.created = ask.chat, served.name, int(time.time())
        self.id = ("chatcmpl-" if ask.chat else "cmpl-") + secrets.token_hex(12)
        self.told = {}              # (choice, number of a call) -> how many characters of it have been sent

    def _frame(self, kind, choices, **more):
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def whole(self, results, prompt_tokens):
        """results: (Writer, finish) per choice; prompt_tokens: ids of all prompts together."""
        choices, about = [], self._noticed(*(writer.spoken for writer, _ in results))
        for index, (writer, finish) in enumerate(results):
            said = writer.spoken.message()
            calls = tool_calls(said)
            message = {"role": "assistant", "content": said["content"] or (None if calls else "")}
            message |= {"reasoning_content": said["thinking"]} if said.get("thinking") else {}
            message |= {"tool_calls": calls} if calls else {}
            body = {"message": message} if self.chat else {"text": said["content"]}
            choices.append({"index": index, **body, "logprobs": self._logprobs(writer.scored),
                            "finish_reason": "tool_calls" if calls else finish, **self._ids(writer)})
        return self._frame("chat.completion" if self.chat else "text_completion", choices,
                           usage=usage(prompt_tokens, sum(len(writer.ids) for writer, _ in results)), tinyseek=about)

    def _ids(self, writer):
        return {"token_ids": list(writer.ids)} if self.ask.token_ids else {}

    def _logprobs(self, scored):
        """Scored ids in OpenAI's shape; None where nobody asked for them."""
        if self.ask.top is None:
            return None
        return {"content": [{**self._token(one.id, one.logprob),
                             "top_logprobs": [self._token(*rival) for rival in one.rivals]} for one in scored],
                "refusal": None}

    def _token(self, index, logprob):
        raw = self.vocab.decode_bytes([index])
        return {"token": raw.decode("utf-8", "replace") if raw else named(self.vocab, index),
                "logprob": max(logprob, UNLIKELY), "bytes": list(raw) or None}

    def _noticed(self, *replies):
        """`about` with what is to be said of these replies: nothing was said, or a call is none."""
        notices = ["（空的回答）"] * any(spoken.empty for spoken in replies)
        notices += [f"模型写了一次不完整的工具调用：{call[:200]}" for spoken in replies for call in spoken.broken()]
        return {**self.about, "notices": self.about["notices"] + notices}

    def opening(self, index):
        """The first chunk of a choice, or None: only chats announce who speaks."""
        opened = {"role": "assistant", "content": ""}
        return self._chunk(index, opened, None, tinyseek=self.about) if self.chat else None

    def piece(self, index, kind, text, scored=(), calls=()):
        """The chunks for some characters of one kind; calls: the text of all calls up to now."""
        if kind == CALLED:
            yield from self._called(index, calls)
        elif kind == SAID:
            yield self._chunk(index, {"content": text} if self.chat else text, None, scored)
        elif kind == THOUGHT:
            yield self._chunk(index, {"reasoning_content": text}, None)

    def _called(self, index, calls):
        """What is new of the calls: the name as soon as it is there, then the arguments as they grow. The last
        character is never sent: it closes what surrounds the arguments."""
        for place, text in enumerate(list(calls)):
            head = HEAD.match(text)
            if not head:
                continue
            if (index, place) not in self.told:
                self.told[index, place] = head.end()
                yield self._called_chunk(index, place, {"name": json.loads(head[1]), "arguments": ""}, {
                    "id": "call_" + secrets.token_hex(8), "type": "function"})
            begin, end = self.told[index, place], len(text) - 1
            if end > begin:
                self.told[index, place] = end
                yield self._called_chunk(index, place, {"arguments": text[begin:end]})

    def _called_chunk(self, index, place, function, more=None):
        return self._chunk(index, {"tool_calls": [{"index": place, **(more or {}), "function": function}]}, None)

    def closing(self, index, finish, writer):
        spoken = writer.spoken
        calls = spoken.message().get("calls")
        if self.chat:
            yield from self._called(index, spoken.calls)
        more = {"tinyseek": self._noticed(spoken)} if spoken.empty or spoken.broken() else {}
        chunk = self._chunk(index, {} if self.chat else "", "tool_calls" if calls else finish, **more)
        chunk["choices"][0] |= self._ids(writer)
        yield chunk

    def totals(self, prompt_tokens, completion_tokens):
        """The last chunk, where stream_options asks for it."""
        return self._frame(self._kind, [], usage=usage(prompt_tokens, completion_tokens))

    @property
    def _kind(self):
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index, content, finish, scored=(), **more):
        return self._frame(self._kind, [{"index": index, "delta" if self.chat else "text": content,
                                         "logprobs": self._logprobs(scored) if scored else None,
                                         "finish_reason": finish}], **more)


def named(vocab, index):
    """An id that is no text, by its name; one that no vocabulary knows by its number."""
    try:
        return vocab.name(index)
    except KeyError:
        return f"[{index}]"


def tool_calls(message):
    """The calls of a reply as OpenAI writes them."""
    found = [parsed_call(call) for call in message.get("calls", ())]
    return [{"id": "call_" + secrets.token_hex(8), "type": "function",
             "function": {"name": call["name"], "arguments": compact(call["arguments"])}} for call in found]


def usage(prompt_tokens, completion_tokens):
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}


def event(content):
    """One server-sent event."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"


DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"      # a comment that keeps proxies from giving up

"""The shapes of OpenAI's answers: whole, or as the chunks of a stream."""

import json
import secrets
import time


class Answer:
    """What all parts of one answer have in common. about: what the field `tinyseek` says of the prompt (dropped_turns,
    context, prompt_tokens, notices); no other server sends it, and clients pass over it."""

    def __init__(self, ask, model, about):
        self.about = about
        self.chat, self.model, self.created = ask.chat, model, int(time.time())
        self.id = ("chatcmpl-" if ask.chat else "cmpl-") + secrets.token_hex(12)

    def _frame(self, kind, choices, **more):
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def whole(self, results, prompt_tokens):
        """results: (text, finish, number of ids) per choice; prompt_tokens: ids of all prompts together."""
        choices, about = [], self._with_empty(any(not text for text, *_ in results))
        for index, (text, finish, _) in enumerate(results):
            body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": index, **body, "logprobs": None, "finish_reason": finish})
        return self._frame("chat.completion" if self.chat else "text_completion", choices,
                           usage=usage(prompt_tokens, sum(count for *_, count in results)), tinyseek=about)

    def _with_empty(self, empty):
        return {**self.about, "notices": self.about["notices"] + ["（空的回答）"] * empty}

    def opening(self, index):
        """The first chunk of a choice, or None: only chats announce who speaks."""
        opened = {"role": "assistant", "content": ""}
        return self._chunk(index, opened, None, tinyseek=self.about) if self.chat else None

    def piece(self, index, text):
        return self._chunk(index, {"content": text} if self.chat else text, None)

    def closing(self, index, finish, empty=False):
        more = {"tinyseek": self._with_empty(True)} if empty else {}
        return self._chunk(index, {} if self.chat else "", finish, **more)

    def totals(self, prompt_tokens, completion_tokens):
        """The last chunk, where stream_options asks for it."""
        return self._frame(self._kind, [], usage=usage(prompt_tokens, completion_tokens))

    @property
    def _kind(self):
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index, content, finish, **more):
        return self._frame(self._kind, [{"index": index, "delta" if self.chat else "text": content, "logprobs": None,
                                         "finish_reason": finish}], **more)


def usage(prompt_tokens, completion_tokens):
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}


def event(content):
    """One server-sent event."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"


DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"      # a comment that keeps proxies from giving up

"""The shapes of OpenAI's answers: whole, or as the chunks of a stream."""

import json
import secrets
import time


class Answer:
    """What all parts of one answer have in common."""

    def __init__(self, ask):
        self.chat, self.model, self.created = ask.chat, ask.model, int(time.time())
        self.id = ("chatcmpl-" if ask.chat else "cmpl-") + secrets.token_hex(12)

    def _frame(self, kind, choices, **more):
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def whole(self, results, prompt_tokens):
        """results: (text, finish, number of ids) per choice; prompt_tokens: ids of all prompts together."""
        choices = []
        for index, (text, finish, _) in enumerate(results):
            body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": index, **body, "logprobs": None, "finish_reason": finish})
        return self._frame("chat.completion" if self.chat else "text_completion", choices,
                           usage=usage(prompt_tokens, sum(count for *_, count in results)))

    def opening(self, index):
        """The first chunk of a choice, or None: only chats announce who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None) if self.chat else None

    def piece(self, index, text):
        return self._chunk(index, {"content": text} if self.chat else text, None)

    def closing(self, index, finish):
        return self._chunk(index, {} if self.chat else "", finish)

    def totals(self, prompt_tokens, completion_tokens):
        """The last chunk, where stream_options asks for it."""
        return self._frame(self._kind, [], usage=usage(prompt_tokens, completion_tokens))

    @property
    def _kind(self):
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index, content, finish):
        return self._frame(self._kind, [{"index": index, "delta" if self.chat else "text": content, "logprobs": None,
                                         "finish_reason": finish}])


def usage(prompt_tokens, completion_tokens):
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


def event(content):
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"      # a comment that keeps proxies from giving up

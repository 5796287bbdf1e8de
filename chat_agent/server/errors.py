"""Answers to what cannot be done, in OpenAI's shape. Nothing of an exception and never more than 4 KiB gets out."""

import json

SHOWN = 64      # characters of a client's own words that an error repeats


class ApiError(Exception):
    """status: HTTP; kind, code, param: OpenAI's `type`, `code`, `param`; retry: seconds for Retry-After."""

    def __init__(self, status, message, code=None, param=None, kind="invalid_request_error", retry=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.kind, self.retry = param, kind, retry

    def content(self):
        return {"error": {"message": self.message[:600], "type": self.kind, "param": self.param, "code": self.code}}

    def body(self):
        return json.dumps(self.content(), ensure_ascii=False).encode("utf-8", "replace")

    def headers(self):
        return {} if self.retry is None else {"retry-after": str(self.retry)}


def shown(value):
    """A client's own word, short enough and plain enough to be repeated."""
    text = value if isinstance(value, str) else type(value).__name__
    text = "".join(c if c.isprintable() else "?" for c in text[:SHOWN])
    return text + ("…" if isinstance(value, str) and len(value) > SHOWN else "")


def bad(message, param=None, code=None):
    return ApiError(400, message, code, param)


def busy(message, code):
    return ApiError(429, message, code, kind="rate_limit_error", retry=2)


def stopping():
    return ApiError(503, "服务正在停止，请稍后再试。", "shutting_down", kind="server_error", retry=10)


def internal():
    return ApiError(500, "服务内部出错，这次没能回答。详情在服务端的日志里。", "internal_error", kind="server_error")

"""Replies of an OpenAI-style server: one request for each, several under way, what may pass is tried again.

The key comes from an environment variable; it goes into the request's header and nowhere else.
"""
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request

from chat_agent.answering.rows import row_of
from tools.errors import UserError
from tools.reading.acting import written
from tools.template import with_thinking

LONGEST_WAIT = 60       # seconds between two tries
SAID = 200              # characters of a server's complaint that are quoted
# our name of an option -> the field of the request
FIELDS = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_tokens", "top_k": "top_k",
          "min_p": "min_p", "repetition_penalty": "repetition_penalty", "frequency_penalty": "frequency_penalty",
          "presence_penalty": "presence_penalty", "stop": "stop"}
sleep = time.sleep


class Refused(Exception):
    """The server does not answer this prompt; it need not be asked again."""


class Unreachable(Exception):
    """All tries have failed in ways that may pass."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to somewhere else."""

    def redirect_request(self, *_):
        return None


class Server:
    """options: the command's Namespace."""

    def __init__(self, options):
        self.url, self.options = _base_of(options.api), options
        self.key = os.environ.get(options.key_env, "")
        if not self.key.isprintable() or not self.key.isascii():
            raise UserError(f"环境变量 {options.key_env} 里的密钥有不能用的字符（换行、中文）。请重新设置。")
        self.open = urllib.request.build_opener(_NoRedirects).open
        self.extra = _extra(options.api_extra)
        self.model = options.api_model or self._only_model()
        given = {field: getattr(options, name) for name, field in FIELDS.items() if getattr(options, name) is not None}
        self.fields = {"model": self.model, **given, **self.extra}
        self.seed = options.seed
        self.about = {"api": self.url, "fields": self.fields, "seed": options.seed}

    def answers(self, messages):
        """One prompt -> (rows, reasons). Unreachable where the server is, UserError where the command is wrong."""
        rows, wrong = [], []
        for number in range(self.options.samples):
            try:
                reply, cut = self._reply(messages, number)
                row, why = (None, "没有说完：用完了 max_tokens") if cut and not self.options.keep_cut \
                    else row_of(messages, reply)
            except Refused as error:
                row, why = None, str(error)
            (rows if row else wrong).append(row or why)
        return rows, wrong

    def _reply(self, messages, number):
        """-> (the reply in the shape that files have, whether it was cut off)."""
        body = {**self.fields, **_asked(messages)}
        if self.seed is not None:
            body["seed"] = self.seed + number
        answer = self._call("/chat/completions", body)
        try:
            choice = answer["choices"][0]
            said = choice["message"]
            fields = {"role": "assistant", "content": said.get("content") or "", "tool_calls": said.get("tool_calls"),
                      "reasoning_content": said.get("reasoning_content") or said.get("reasoning")}
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Refused(f"答复里没有回答：{self._quoted(json.dumps(answer, ensure_ascii=False))}") from None
        if choice.get("finish_reason") == "content_filter":
            raise Refused("服务不肯回答（content_filter）")
        return fields, choice.get("finish_reason") == "length"

    def _only_model(self):
        try:
            names = [one["id"] for one in self._call("/models")["data"]]
        except Refused as error:
            raise UserError(f"问不到 {self.url} 有哪些模型（{error}）。请用 --api_model 写明。") from None
        except Unreachable as error:
            raise UserError(f"连不上 {self.url}：{error}。请检查网址和网络。") from None
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            there = f"有：{'、'.join(map(str, names[:10]))}" if names else "它没有说有哪些"
            raise UserError(f"请用 --api_model 写明用 {self.url} 的哪个模型，{there}。")
        return names[0]

    def _call(self, path, body=None):
        """The parsed answer; tried again as often as --retries says."""
        for attempt in range(self.options.retries + 1):
            try:
                return self._once(path, body)
            except Unreachable as error:
                problem = error
                if attempt < self.options.retries:
                    sleep(min(LONGEST_WAIT, error.args[1] if len(error.args) > 1 else 0.5 * 2 ** attempt))
        raise Unreachable(problem.args[0])

    def _once(self, path, body):
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with self.open(request, timeout=self.options.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._meaning(error) from None
        except ValueError:
            raise Unreachable("答复不是 JSON") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(self._quoted(str(reason) or type(reason).__name__)) from None

    def _meaning(self, error):
        """What a status other than 200 says."""
        try:
            said = self._quoted(error.read(1 << 16).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        told, code = f"HTTP {error.code}{'：' if said else ''}{said}", error.code
        if code in (401, 403):
            return UserError(f"{self.url} 不收这个密钥（{told}）。请检查环境变量 {self.options.key_env}。")
        if code == 404 or 300 <= code < 400:
            return UserError(f"{self.url} 上没有这个地址或模型（{told}）。请检查 --api 和 --api_model。")
        if code in (408, 409, 425, 429) or code >= 500:
            wait = error.headers.get("Retry-After", "")
            return Unreachable(told, float(wait)) if wait.isdigit() else Unreachable(told)
        return Refused(told)

    def _quoted(self, text):
        """What somebody else said, without the key that servers like to repeat."""
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            pass
        text = str(text).replace(self.key, "***") if self.key else str(text)
        return " ".join(text.split())[:SAID]


def _base_of(url):
    """http://host:1/v1 of what a user writes. UserError for what is no address, or holds a key."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--api {url} 不是网址。写法：--api http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError("--api 的网址里不要写密钥或参数：密钥请放进环境变量（--key_env 写它的名字）。")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _extra(text):
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError("--api_extra 应是 JSON 对象，如 '{\"enable_thinking\": false}'。")
    return found


def _asked(messages):
    """{"messages", "tools"?} as a server wants them: calls with ids, results that name them, no thoughts."""
    body, waiting, made = written(with_thinking(messages, "off")), [], 0
    for message in body["messages"]:
        message.pop("weight", None)
        for call in message.get("tool_calls", ()):
            call["id"], made = f"call_{made}", made + 1
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            waiting.append(call["id"])
        if message["role"] == "tool":
            message["tool_call_id"] = waiting.pop(0) if waiting else f"call_{made}"
    if "tools" in body:
        body["tools"] = [one if "function" in one else {"type": "function", "function": one} for one in body["tools"]]
    return body

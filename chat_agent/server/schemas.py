"""What a request may say. A body becomes an Ask, or an ApiError that names the field.

Names are OpenAI's; of ours there are repetition_penalty, top_k, min_p and no_repeat_ngram. A field that nobody knows is refused, as OpenAI
does; one that OpenAI knows and this server does not support may only have the value that changes nothing.
"""

import json
import math
from dataclasses import dataclass, field

from chat_agent.server.errors import bad, shown
from model.sampling import Sampling
from tools.template import ROLE_NAMES

SEED = 1 << 63
COMMON = ("model", "n", "stream", "stream_options", "stop", "seed", "temperature", "top_p", "max_tokens", "repetition_penalty", "top_k",
          "min_p", "no_repeat_ngram")
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
NEUTRAL = {       # what these fields may be; None always is
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False, 0), "top_logprobs": (0,),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "modalities": (["text"],), "echo": (False,), "suffix": ("",), "best_of": (1,),
}
DEFAULTS = {"temperature": 0.7, "top_p": 1.0, "repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0, "no_repeat_ngram": 0}


@dataclass
class Ask:
    """prompts: conversations (lists of messages) for chat, texts otherwise. n: replies to each."""

    model: str
    prompts: list
    chat: bool
    how: Sampling
    new_tokens: int
    n: int = 1
    seed: int | None = None
    stops: list = field(default_factory=list)
    stream: bool = False
    usage: bool = False


def parsed(raw):
    """The bytes of a body -> dict. JSON as in RFC 8259: no NaN, no lone objects of other types."""
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise bad("请求不是正确的 JSON（UTF-8）。") from None
    if not isinstance(body, dict):
        raise bad("请求应是一个 JSON 对象。")
    return body


def _refuse(name):
    raise ValueError(name)


def read_chat(body, limits):
    _known(body, (*COMMON, "messages", "max_completion_tokens"))
    messages = _messages(body.get("messages"), limits)
    wanted = body.get("max_completion_tokens")
    return _ask(body, limits, [messages], True, body.get("max_tokens") if wanted is None else wanted, min(512, limits.new_tokens))


def read_completion(body, limits):
    _known(body, (*COMMON, "prompt"))
    prompts = body.get("prompt", "")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise bad("prompt 应是字符串，或字符串的列表。", "prompt")
    return _ask(body, limits, prompts, False, body.get("max_tokens"), min(16, limits.new_tokens))


def _known(body, fields):
    for name, value in body.items():
        if name in fields or name in IGNORED or value is None and name in NEUTRAL:
            continue
        if name not in NEUTRAL:
            raise bad(f"不认识的字段：{shown(name)}。", shown(name), "unknown_parameter")
        if not any(type(value) in (type(one), float) and value == one for one in NEUTRAL[name]):
            raise bad(f"这个服务不支持 {name}。", name, "unsupported_parameter")


def _ask(body, limits, prompts, chat, wanted, default):
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise bad("缺少 model，有哪些见 /v1/models。", "model")
    n = _integer(body, "n", 1, 1, limits.choices)
    if n * len(prompts) > limits.choices:
        raise bad(f"一次最多要 {limits.choices} 个回答。", "n")
    stream, usage = _switch(body, "stream"), _usage(body.get("stream_options"))
    new_tokens = default if wanted is None else _whole(wanted, "max_tokens", 1, math.inf)
    seed = body.get("seed")
    return Ask(model, prompts, chat, _sampling(body), min(new_tokens, limits.new_tokens), n,
               None if seed is None else _whole(seed, "seed", -SEED, SEED), _stops(body.get("stop"), limits), stream, stream and usage)


def _sampling(body):
    top_k = _integer(body, "top_k", 0, -1, math.inf)                             # -1: vLLM's word for all
    return Sampling(
        temperature=_number(body, "temperature", 0, 2), top_p=max(_number(body, "top_p", 0, 1), 1e-6), top_k=max(0, min(top_k, 1 << 31)),
        min_p=_number(body, "min_p", 0, 1), repetition_penalty=_number(body, "repetition_penalty", 0.1, 10),
        no_repeat_ngram=min(_integer(body, "no_repeat_ngram", 0, 0, math.inf), 1 << 20))


def _number(body, name, low, high):
    value = body.get(name)
    if value is None:
        return DEFAULTS[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise bad(f"{name} 应是 {low} 到 {high} 之间的数。", name)
    return float(value)


def _integer(body, name, default, low, high):
    value = body.get(name)
    return default if value is None else _whole(value, name, low, high)


def _whole(value, name, low, high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad(f"{name} 应是不小于 {low} 的整数。" if high == math.inf else f"{name} 应是 {low} 到 {high} 之间的整数。", name)
    return value


def _switch(body, name):
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"{name} 应是 true 或 false。", name)
    return bool(value)


def _usage(options):
    if options is None:
        return False
    if not isinstance(options, dict):
        raise bad("stream_options 应是对象。", "stream_options")
    return _switch(options, "include_usage")


def _stops(value, limits):
    stops = [] if value is None else [value] if isinstance(value, str) else value
    good = (isinstance(stops, list) and len(stops) <= limits.stops
            and all(isinstance(s, str) and 0 < len(s) <= limits.stop_length for s in stops))
    if not good:
        raise bad(f"stop 应是字符串，或至多 {limits.stops} 个字符串的列表，每个 1 到 {limits.stop_length} 个字符。", "stop")
    return stops


def _messages(messages, limits):
    if not isinstance(messages, list) or not messages:
        raise bad("messages 应是列表，至少有一条。", "messages")
    if len(messages) > limits.messages:
        raise bad(f"messages 最多 {limits.messages} 条。", "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message, place):
    if not isinstance(message, dict):
        raise bad(f"{place} 应是 {{\"role\", \"content\"}} 这样的对象。", "messages")
    for name, value in message.items():
        if name not in ("role", "content", "name", "refusal") and value is not None:
            raise bad(f"{place} 里有不支持的字段：{shown(name)}。", "messages", "unsupported_parameter")
    role = "system" if message.get("role") == "developer" else message.get("role")         # OpenAI's newer word for it
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise bad(f"{place}.role 只能是 system、user 或 assistant，不能是 {shown(role)}。", "messages")
    return {"role": role, "content": _content(message.get("content"), place)}


def _content(content, place):
    """A string, or OpenAI's list of text parts."""
    if isinstance(content, list) and content:
        good = all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content)
        content = "".join(p["text"] for p in content) if good else None
    if not isinstance(content, str):
        raise bad(f"{place}.content 应是文字；图片等别的内容这里看不懂。", "messages")
    return content

"""What a request may say. A body becomes an Ask, or an ApiError that names the field.

Names are OpenAI's; vLLM's, llama.cpp's and Ollama's words for the same things are taken too. What changes nothing is
accepted from anybody. What nobody here knows is left out, and the answer's header says so (x-tinyseek-ignored). What
would change the reply's form and cannot be done is refused.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import (BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator,
                      model_validator)

from tools.acting.forms import Form
from chat_agent.server.errors import bad, shown
from chat_agent.server.form import FIELDS, form_of
from model.sampling import RANGES, Sampling
from tools.reading.acting import THOUGHTS, calls_of
from tools.reading.row import Bad, Source

SEED = 1 << 63
# a message's role -> ours. developer: OpenAI's newer word for system; function: its older one for tool
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool", "developer": "system",
         "function": "tool"}
# Words for whether the model shall think, other servers' among them.
THINKING = ("enable_thinking", "think", "thinking", "reasoning_effort", "reasoning", "chat_template_kwargs")
LONGEST_NOTE = 400                                      # characters of the header that names what was left out
SAME = {"repeat_penalty": "repetition_penalty", "max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens",
        "num_predict": "max_tokens", "n_predict": "max_tokens", "no_repeat_ngram_size": "no_repeat_ngram"}
# Clients' book-keeping, and words for what is off here anyway: not worth a remark.
QUIET = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
         "parallel_tool_calls", "keep_alive", "cache_prompt", "skip_special_tokens", "spaces_between_special_tokens",
         "num_ctx", "options",
         "name", "id", "refusal", "annotations", "tool_call_id", "timestamp", "created", "created_at")
# What asks for another reply than this server can give, unless it has one of these values (or changes nothing, see
# `neutral`).
REFUSED = {
    "response_format": ({"type": "text"},), "tool_choice": ("auto",), "function_call": ("auto",),    # elsewhere
    "modalities": (["text"],), "best_of": (1,), **dict.fromkeys((    # logprobs: of /v1/completions
        "logit_bias", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix", "ignore_eos", "min_tokens",
        "use_beam_search", "chat_template", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
        "structured_outputs", "json_schema", "grammar", "audio", "continue_final_message", "tool_calls",
        "stop_token_ids", "bad_words", "messages"), ()),
}
OFF = ("none", "disabled", "off", "minimal", "default", "auto")


def neutral(value, inside=False):
    """Whether a field with this value asks for nothing: off, empty, or an object of such values ({"enable_thinking":
    false})."""
    if isinstance(value, dict) and not inside:
        return all(neutral(one, True) for one in value.values())
    return not value or isinstance(value, str) and value.lower() in OFF


def wanted_thinking(value):
    """What a field of THINKING asks for: on, off, or auto where it leaves that to the model."""
    if isinstance(value, dict):
        found = [wanted_thinking(value[name]) for name in (*THINKING, "type", "effort", "enabled") if name in value]
        return next((one for one in found if one != "auto"), "auto")
    word = str(value).lower()
    if value is False or word in ("none", "disabled", "off"):
        return "off"
    return "on" if value is True or word in ("on", "enabled", "low", "medium", "high", "xhigh") else "auto"


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value) if abs(value) < 1e300 else math.inf


def _whole(value):
    """An int, also where a client writes it 12.0."""
    if isinstance(value, bool) or not isinstance(value, int) and not (isinstance(value, float) and value.is_integer()):
        raise ValueError
    return int(value)


def number(low, high):
    return Annotated[float | None, BeforeValidator(_number), Field(ge=low, le=high, description=f"{low} 到 {high} 之间的数")]


def whole(low=None, high=None):
    said = "整数" if low is None else f"不小于 {low} 的整数" if high is None else f"{low} 到 {high} 之间的整数"
    return Annotated[int | None, BeforeValidator(_whole), Field(ge=low, le=high, description=said)]


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal[*ROLES]
    content: str | Annotated[list[Part], Field(min_length=1)] | None = None

    def plain(self, place, ignored):
        """-> a message as tools/template.py renders it. ApiError 400 for what cannot be read."""
        calls = self._calls(place) if self.role == "assistant" else []
        thoughts = [self.model_extra.pop(name, None) for name in THOUGHTS]
        _sorted_out(self.model_extra, ignored, "messages.")
        content = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        if content is None and self.role != "assistant":
            raise bad(f"{place}.content 应是文字；图片等别的内容这里看不懂。", "messages")
        thought = next((one for one in thoughts if isinstance(one, str)), "")
        message = {"role": ROLES[self.role], "content": content or "", **({"calls": calls} if calls else {})}
        return message | ({"thinking": thought} if thought.strip() and self.role == "assistant" else {})

    def _calls(self, place):
        found = [(name, self.model_extra.pop(name)) for name in ("tool_calls", "function_call")
                 if self.model_extra.get(name)]
        try:
            return [call for name, value in found for call in calls_of(Source({}), value, name)]
        except Bad as error:
            raise bad(f"{place}：{error}。", "messages") from None


class Streaming(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool | None = None


class Request(BaseModel):
    """Every field that does something. A description ends the sentence `字段 应是 …`."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: Annotated[str | None, Field(description="字符串，有哪些见 /v1/models")] = None
    n: whole(1, 1 << 16) = None
    stream: Annotated[bool | None, Field(description="true 或 false")] = None
    stream_options: Annotated[Streaming | None, Field(description='对象，如 {"include_usage": true}')] = None
    stop: Annotated[str | list[str] | None, Field(description="字符串，或字符串的列表")] = None
    seed: whole(-SEED, SEED) = None
    max_tokens: whole() = None                           # negative: as long as there is room
    temperature: number(*RANGES["temperature"]) = None
    top_p: number(*RANGES["top_p"]) = None
    min_p: number(*RANGES["min_p"]) = None
    top_k: whole(*RANGES["top_k"]) = None                             # -1: vLLM's word for all
    repetition_penalty: number(*RANGES["repetition_penalty"]) = None
    frequency_penalty: number(*RANGES["frequency_penalty"]) = None
    presence_penalty: number(*RANGES["presence_penalty"]) = None
    no_repeat_ngram: whole(*RANGES["no_repeat_ngram"]) = None

    @model_validator(mode="before")
    @classmethod
    def one_word_each(cls, body):
        """Other servers' words become ours; null is as good as nothing; Ollama's `options` count where nothing else is
        said."""
        options = body.get("options") if isinstance(body.get("options"), dict) else {}
        given = [(name, value) for part in (options, body) for name, value in part.items() if value is not None]
        # of two words for one thing: max_completion_tokens
        given.sort(key=lambda one: (one[0] in body, one[0] in SAME))
        return {SAME.get(name, name): value for name, value in given}

    @field_validator("stop")
    @classmethod
    def stop_strings(cls, value):
        return [one for one in ([value] if isinstance(value, str) else value) if one]

    def given(self):
        """The fields of Sampling that the request sets."""
        values = {name: getattr(self, name) for name in Sampling.__dataclass_fields__
                  if name in type(self).model_fields}
        most = {"top_k": 1 << 31, "no_repeat_ngram": 1 << 20}
        return {name: max(0, min(value, most[name])) if name in most else value
                for name, value in values.items() if value is not None}


class ChatRequest(Request):
    messages: Annotated[list, Field(min_length=1, description="列表，至少有一条")]
    logprobs: Annotated[bool | None, Field(description="true 或 false")] = None
    top_logprobs: whole(0, 20) = None
    return_token_ids: Annotated[bool | None, Field(description="true 或 false")] = None      # vLLM's
    _form: dict = PrivateAttr(default_factory=dict)         # the fields that chat_agent/server/form.py reads


class CompletionRequest(Request):
    prompt: Annotated[str | Annotated[list[str], Field(min_length=1)], Field(description="字符串，或字符串的列表")]


@dataclass
class Ask:
    """prompts: conversations (lists of messages) for chat, texts otherwise. given: what the request says of sampling;
    the rest comes from the model. new_tokens: ids of a reply, None = the model's own, inf = as many as there may be. n:
    replies to each prompt. ignored: names of fields that were left out."""

    model: str | None
    prompts: list
    chat: bool
    given: dict
    new_tokens: float | None
    n: int = 1
    seed: int | None = None
    stops: list = field(default_factory=list)
    stream: bool = False
    usage: bool = False
    ignored: list = field(default_factory=list)
    thinking: str = "auto"
    form: Form = Form()
    acts: tuple = ()
    how: Sampling = None
    hows: list = ()                 # a Sampling for each prompt, with its rule
    top: int | None = None          # how many rivals of each token are named, None = no logprobs
    token_ids: bool = False

    def settle(self, defaults, limits, acts=(), structure=None):
        """Fill in what the request leaves to the model, leave out what it knows nothing of. defaults: as
        model.sampling.DEFAULTS; acts: what it has learned beside speaking, structure: keywords of Sampling for that.
        ApiError 400."""
        own, self.acts = {name: value for name, value in defaults.items() if name != "max_new_tokens"}, tuple(acts)
        structure = {name: ids for name, ids in (structure or {}).items() if self.chat or name != "marks"}
        self.how = Sampling(**{**own, **self.given, **structure})
        if "thinking" in acts:
            self.ignored = [name for name in self.ignored if name not in THINKING]
        else:
            self.thinking = "auto"
            self.prompts = [[{k: v for k, v in m.items() if k != "thinking"} for m in one] if self.chat else one
                            for one in self.prompts]
        if self.form.tools and "calls" in acts:
            self.prompts = [[{"role": "tools", "content": self.form.tools}, *one] for one in self.prompts]
        elif self.form.tools and not self.form.must:        # who knows no calls makes them only where it has to
            self.ignored.insert(0, "tools")
            self.form = Form(text=self.form.text)
        wanted = defaults["max_new_tokens"] if self.new_tokens is None else self.new_tokens
        self.new_tokens = min(wanted, limits.new_tokens)

    def headers(self):
        names = quote(",".join(dict.fromkeys(self.ignored)), safe=",._-[]")
        return {"x-tinyseek-ignored": names[:LONGEST_NOTE]} if names else {}


def parsed(raw):
    """The bytes of a body -> dict. JSON as in RFC 8259: no NaN, no lone objects of other types."""
    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise bad("请求不是正确的 JSON（UTF-8）。") from None
    if not isinstance(body, dict):
        raise bad("请求应是一个 JSON 对象。")
    return body


def _refuse(name):
    raise ValueError(name)


def read_chat(body, limits):
    request, ignored = _read(ChatRequest, body)
    if len(request.messages) > limits.messages:
        raise bad(f"messages 最多 {limits.messages} 条。", "messages")
    messages = [_message(one, f"messages[{i}]", ignored) for i, one in enumerate(request.messages)]
    for i, message in enumerate(messages):
        if message["role"] == "tool" and (not i or messages[i - 1]["role"] not in ("assistant", "tool")):
            raise bad(f"messages[{i}] 是工具的结果，前面却没有调用它的回答。", "messages")
    ask, extra = _ask(request, limits, [messages], True, ignored), request.model_extra
    wanted = [wanted_thinking(extra[name]) for name in THINKING if name in extra]
    ask.thinking = next((one for one in wanted if one != "auto"), "auto")
    ask.form, unheld = form_of(request._form)
    ask.ignored += unheld
    if request.top_logprobs and not request.logprobs:
        raise bad("要 top_logprobs 就得写 logprobs: true。", "top_logprobs")
    ask.top = request.top_logprobs or 0 if request.logprobs else None
    ask.token_ids = bool(request.return_token_ids)
    return ask


def read_completion(body, limits):
    request, ignored = _read(CompletionRequest, body)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    return _ask(request, limits, prompts, False, ignored)


def _read(kind, body):
    """-> the checked request, names of fields that were left out."""
    ignored = []
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        raise _named(kind, error, body) from None
    if kind is ChatRequest:
        request._form = {name: request.model_extra.pop(name) for name in FIELDS if name in request.model_extra}
    _sorted_out(request.model_extra, ignored)
    return request, ignored


def _sorted_out(extra, ignored, place=""):
    """Fields without a use here: refused, remarked, or not worth a word."""
    for name, value in extra.items():
        if neutral(value) or name in QUIET:
            continue
        if name in REFUSED and value not in REFUSED[name]:
            raise bad(f"这个服务不支持 {place}{name}。", "messages" if place else name, "unsupported_parameter")
        if name not in REFUSED:
            ignored.append(place + shown(name))


def _named(kind, error, body):
    """pydantic's first complaint -> ApiError in our words."""
    name = str(error.errors()[0]["loc"][0])
    written, said = next((one for one in body if SAME.get(one, one) == name), name), kind.model_fields[name].description
    return bad(f"{written} 应是{' ' * said[0].isascii()}{said}。", written)


def _message(message, place, ignored):
    if not isinstance(message, dict):
        raise bad(f"{place} 应是 {{\"role\", \"content\"}} 这样的对象。", "messages")
    try:
        return Message.model_validate(message).plain(place, ignored)
    except ValidationError as error:
        if error.errors()[0]["loc"][0] == "role":
            said = f"只能是 system、user、assistant 或 tool，不能是 {shown(message.get('role'))}"
            raise bad(f"{place}.role {said}。", "messages") from None
        raise bad(f"{place}.content 应是文字；图片等别的内容这里看不懂。", "messages") from None


def _ask(request, limits, prompts, chat, ignored):
    n, stops = request.n or 1, request.stop or []
    if n * len(prompts) > limits.choices:
        raise bad(f"一次最多要 {limits.choices} 个回答。", "n")
    if len(stops) > limits.stops or any(len(one) > limits.stop_length for one in stops):
        raise bad(f"stop 至多 {limits.stops} 个，每个最多 {limits.stop_length} 个字符。", "stop")
    # 0: not said
    wanted = None if not request.max_tokens else request.max_tokens if request.max_tokens > 0 else math.inf
    usage = bool(request.stream and request.stream_options and request.stream_options.include_usage)
    seed = None if request.seed == -1 else request.seed
    return Ask(request.model, prompts, chat, request.given(), wanted, n, seed, stops, bool(request.stream), usage,
               ignored)

"""Thoughts, tool calls and offered tools in other people's spellings -> what tools/template.py renders.

A message's "calls" are strings as `call_text` makes them; the tools on offer are one message of the role "tools", a
JSON list. Whatever is there and cannot be understood is refused: a call that went missing would teach nonsense.
"""
import json

from tools.reading.row import Bad
from tools.template import call_text, compact, function_of, parsed_call

THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")        # of a reply
OWN_THOUGHTS = (*THOUGHTS, "complex_cot", "cot")                            # beside a question and its answer
OFFERED = ("tools", "functions")
CALL_ID = "tool_call_id"
MANY = "tool_calls"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def said_once(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Bad("工具调用里有写了两次的名字")
    return found


def json_of(value, name):
    """A value, also one that was written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=said_once)
    except ValueError:
        raise Bad(f"{name} 不是合法的 JSON") from None


def take_all(source, value):
    """Register every string in a value as used."""
    if isinstance(value, str):
        source.take(value)
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            take_all(source, one)


def calls_of(source, value, name):
    """One call or several, as an object or as JSON text -> list of strings."""
    found = json_of(value, name)
    take_all(source, value)
    return [_call(source, one, name) for one in (found if isinstance(found, list) else [found])]


def _call(source, call, name):
    """{"function": {"name", "arguments"}} (OpenAI) or {"name", "arguments"}; arguments as an object or as JSON text."""
    call = call if isinstance(call, dict) else {}
    inner = function_of(call)
    function = inner.get("name")
    if call.get("type") not in (None, "function") or not isinstance(function, str) or not function.strip():
        raise Bad(f"{name} 里的一次调用没有函数名")
    known = next((key for key in ("arguments", "parameters") if key in inner), None)
    arguments = inner.get(known) if known else None
    empty = arguments is None or isinstance(arguments, str) and not arguments.strip()
    arguments = {} if empty else json_of(arguments, f"{name} 的 arguments")
    if not isinstance(arguments, dict):
        raise Bad(f"{name} 的 arguments 应是 JSON 对象")
    _other_fields(source, call, inner, known)
    text = _compact(call_text, name, function, arguments)
    if parsed_call(text) is None:
        raise Bad(f"{name} 的 arguments 不是合法的 JSON")
    return text


def _other_fields(source, call, inner, known):
    """What a call says beside name and arguments is counted by name; its id under one that says so."""
    used = ("type", "function", "name", known)
    for key, value in {**call, **inner}.items():
        if key.startswith("写了两次的"):
            raise Bad("工具调用里有写了两次的名字")
        if key not in used and isinstance(value, str):
            source.drop(CALL_ID if key.endswith("id") else f"{MANY}.{key}"[:40], value)


def _compact(make, name, *values):
    try:
        text = make(*values)
    except ValueError:                                                  # NaN and Infinity
        raise Bad(f"{name} 里有 JSON 没有的数") from None
    if "写了两次的" in text:                                             # how formats marks an earlier value of a key
        raise Bad("工具调用里有写了两次的名字")
    return text


def offered(source, value, name):
    """The tools on offer, a list of definitions, one of them, or either as JSON text -> JSON text, "" if there are
    none.

    A text that is no JSON, and a list of mere names, stay where they are, to be counted as dropped.
    """
    if isinstance(value, str) and not value.strip().startswith(("[", "{")):
        return ""
    found = json_of(value, name)
    found = [found] if isinstance(found, dict) and found else found
    if not found:
        return ""
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return ""
        raise Bad(f"{name} 应是工具定义的列表")
    for one in found:
        inner = function_of(one)
        if not isinstance(inner.get("name"), str) or not inner["name"].strip():
            raise Bad(f"{name} 里有一个工具没有名字")
    take_all(source, value)
    return _compact(compact, name, found)


def with_offered(source, messages):
    """The messages behind a turn with the tools that the row, or one of its messages, offers."""
    lists = [offered(source, source.get(name), name) for name in OFFERED if name in source]
    lists += [message.pop("tools") for message in messages if "tools" in message]
    lists += [message["content"] for message in messages if message["role"] == "tools"]
    lists = list(dict.fromkeys(filter(None, lists)))
    if len(lists) > 1:
        raise Bad("工具的定义写了几处，而且不同")
    spoken = [message for message in messages if message["role"] != "tools"]
    return [{"role": "tools", "content": lists[0]}, *spoken] if lists else spoken


def written(messages):
    """Messages in the shape that files have: {"messages": […], "tools"?: […]}. Reading it gives the same messages."""
    tools = [json.loads(m["content"]) for m in messages if m["role"] == "tools"]
    return {"messages": [_written(m) for m in messages if m["role"] != "tools"],
            **({"tools": tools[0]} if tools else {})}


def _written(message):
    fields = {"role": message["role"], "content": message["content"]}
    thought = message.get("thinking")
    if thought:
        fields["reasoning_content"] = thought
    elif thought is not None:                                           # an empty field would count as missing
        fields["content"] = EMPTY_THOUGHT + message["content"]
    if message.get("calls"):
        fields[MANY] = [{"type": "function", "function": json.loads(call)} for call in message["calls"]]
    return fields | ({"weight": 0} if message.get("weight") == 0 else {})

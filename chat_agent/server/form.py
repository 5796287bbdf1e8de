"""Which form a request wants its reply to have: tools, tool_choice, response_format -> tools/acting/forms.Form."""

import dataclasses

from tools.acting.forms import Form, any_object, names_of
from tools.acting.schema import SchemaError
from chat_agent.server.errors import bad, shown
from model.generate import check_prompt
from tools.reading.acting import offered
from tools.reading.row import Bad, Source
from tools.template import compact

FIELDS = ("tools", "tool_choice", "response_format", "parallel_tool_calls")
MANY = ("required", "any")              # any: Mistral's word


def form_of(extra):
    """The fields that decide it -> (Form, names of what cannot be held). ApiError 400."""
    choice, tools, text, unheld = extra.get("tool_choice"), extra.get("tools"), "", []
    name, must = _chosen(choice)
    if must and not tools:
        raise bad("要求调用工具（tool_choice），却没有给出 tools。", "tool_choice")
    listed = _listed(tools) if tools and choice != "none" else ""
    most = 1 if name or extra.get("parallel_tool_calls") is False else None
    if extra.get("response_format"):
        text, unheld = _format(extra["response_format"])
    return Form(listed, name, must, most, text), unheld


def _chosen(choice):
    """-> (the function that has to be called or None, whether a call has to come)"""
    if choice is None or choice in ("auto", "none"):
        return None, False
    if choice in MANY:
        return None, True
    inner = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise bad('tool_choice 应是 "auto"、"none"、"required"，或 {"type": "function", "function": {"name": 名字}}。',
                  "tool_choice")
    return inner["name"], True


def _listed(tools):
    try:
        listed = offered(Source({}), tools, "tools")
    except Bad as error:
        raise bad(f"{error}。", "tools") from None
    if not listed:                                          # names alone, as some data files have them
        raise bad("tools 应是工具定义的列表。", "tools")
    return listed


def _format(value):
    """response_format -> (schema as JSON text, "" for plain text; what cannot be held)"""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return "", []
    if kind == "json_object" and "schema" not in value:
        return any_object(), []
    said = value.get("json_schema") if kind == "json_schema" else value if kind == "json_object" else None
    if not isinstance(said, dict) or not isinstance(said.get("schema"), (dict, bool)):
        raise bad('response_format 应是 {"type": "text"}、{"type": "json_object"}，或 {"type": "json_schema", '
                  '"json_schema": {"name": 名字, "schema": 对象}}。', "response_format")
    try:
        text = compact(said["schema"])
        unheld = Form(text=text).unheld
    except (SchemaError, ValueError, RecursionError) as error:
        raise bad(f"{_why(error)}。", "response_format") from None
    if unheld and said.get("strict"):
        raise bad(f"schema 里的 {'、'.join(unheld)} 这里保证不了；去掉它，或不写 strict。", "response_format")
    return text, [f"response_format.{name}" for name in unheld]


def _why(error):
    return str(error) if isinstance(error, SchemaError) else "schema 写得不对，或套得太深"


def ruled(ask, served, prompt):
    """The Sampling of a reply to this prompt. ApiError 400 where the form cannot be, or not within its room."""
    room = check_prompt(served.model.config, prompt.ids, served.room(prompt.ids, ask.new_tokens))
    try:
        rule = ask.form.rule(served.vocab, served.model.config.vocab_size, room, ask.acts, ask.thinking)
        ask.ignored += [f"tools.{name}" for name in ask.form.unheld] if ask.form.tools else []
    except (SchemaError, RecursionError) as error:
        where = "tool_choice" if ask.form.name and ask.form.name not in names_of(ask.form.tools) else "tools"
        raise bad(f"{shown(_why(error))}。", where) from None
    if rule and rule.least() > room:
        raise bad(f"这种形式的回答至少要 {rule.least()} 个词元，这里只有 {room} 个。请加大 max_tokens，或少写一些话。",
                  "max_tokens")
    return dataclasses.replace(ask.how, rule=rule)

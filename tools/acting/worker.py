"""A process of its own that runs the functions of a Python file: python worker.py FILE

It says {"tools": [...]} or {"error": ...} once, then answers each line {"name", "arguments"} of its input with
{"result"} or {"error"}. Whoever started it ends it when it takes too long. Only the standard library is used.
"""
import importlib.util
import inspect
import json
import os
import re
import sys
import types
import typing

LONGEST = 20000                 # characters of a result that are handed on
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


def schema(kind):
    """An annotation as JSON schema."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in KINDS:
        return {"type": KINDS[kind]}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (list, tuple, set):
        return {"type": "array", "items": schema(inner[0])} if inner else {"type": "array"}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema(inner[1])}
    if origin in (typing.Union, getattr(types, "UnionType", typing.Union)):
        some = [one for one in inner if one is not type(None)]
        return schema(some[0]) if len(some) == 1 else {"anyOf": [schema(one) for one in some]}
    if kind is typing.Any or kind is inspect.Parameter.empty:
        return {"type": "string"}
    raise TypeError(f"参数的类型 {kind} 看不懂，可以写 str、int、float、bool、list[str]、dict、Literal")


def described(name, function):
    """A function as a tool. Its docstring's first paragraph describes it, lines `name: text` its parameters."""
    kinds, words = typing.get_type_hints(function), inspect.getdoc(function) or ""
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{name} 的参数 {parameter.name} 要能写名字")
        properties[parameter.name] = schema(kinds.get(parameter.name, inspect.Parameter.empty))
        said = re.search(rf"^\s*{re.escape(parameter.name)}\s*[:：]\s*(.+)$", words, re.M)
        if said:
            properties[parameter.name]["description"] = said[1].strip()
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    about = {"description": words.split("\n\n")[0].strip()} if words else {}
    return {"name": name, **about,
            "parameters": {"type": "object", "properties": properties, "required": required}}


def load(path):
    """-> {name: function} of what a file defines and does not begin with _."""
    spec = importlib.util.spec_from_file_location("my_tools", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec.loader.exec_module(module)
    return {name: one for name, one in vars(module).items()
            if inspect.isfunction(one) and one.__module__ == "my_tools" and not name.startswith("_")}


def answer(functions, line):
    asked = json.loads(line)
    try:
        result = functions[asked["name"]](**asked["arguments"])
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        return {"result": text[:LONGEST]}
    except BaseException as error:      # also one that wants to leave: the model is told, the next call still works
        return {"error": f"{type(error).__name__}：{error}"[:LONGEST]}


def main(path):
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                       # what a tool prints is no answer
    sys.stdout = sys.stderr

    def say(value):
        out.write(json.dumps(value) + "\n")
        out.flush()
    try:
        functions = load(path)
        say({"tools": [described(name, one) for name, one in functions.items()]})
    except BaseException as error:
        return say({"error": f"{type(error).__name__}：{error}"})
    for line in sys.stdin:
        say(answer(functions, line))


if __name__ == "__main__":
    main(sys.argv[1])

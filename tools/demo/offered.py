"""The built-in tools as a model is told of them: what the chat offers is what the built-in tool tasks teach."""


def text(*names, **more):
    return {"type": "object", "properties": {**{name: {"type": "string"} for name in names}, **more},
            "required": list(names)}


# name -> parameters; no descriptions: a small model's context is short
PARAMETERS = {
    "calculate": text("expression"),
    "calendar": text("date", until={"type": "string"}, days={"type": "integer"}),
    "convert": {"type": "object", "properties": {
        "value": {"type": "number"}, "source": {"type": "string"}, "target": {"type": "string"}},
        "required": ["value", "source", "target"]},
    "look_up": text("query"),
}


def definition(name):
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS[name]}}

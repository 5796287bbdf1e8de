"""Whether a JSON value fits a schema, told without any of our grammar: the judge of constrained decoding."""


def kind(value):
    return {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object",
            type(None): "null"}[type(value)]


def resolve(schema, root):
    while isinstance(schema, dict) and "$ref" in schema:
        found = root
        for part in schema["$ref"].lstrip("#/").split("/") if schema["$ref"] != "#" else ():
            found = found[part]
        schema = found
    return schema


def fits(value, schema, root=None):
    root = schema if root is None else root
    schema = resolve(schema, root)
    if schema is True or schema == {}:
        return True
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return any(fits(value, one, root) for one in schema[name])
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    mine = kind(value)
    if types and mine not in types and not (mine == "integer" and "number" in types):
        return False
    if "enum" in schema and value not in schema["enum"] or "const" in schema and value != schema["const"]:
        return False
    return {"object": members, "array": items, "string": length, "integer": bounds, "number": bounds}.get(
        mine, lambda *_: True)(value, schema, root)


def members(value, schema, root):
    properties = schema.get("properties")
    if not set(schema.get("required", ())) <= set(value):
        return False
    if properties is None:
        more = schema.get("additionalProperties", True)
        return all(more is not False and fits(one, more, root) for one in value.values())
    return all(name in properties and fits(one, properties[name], root) for name, one in value.items())


def items(value, schema, root):
    first, rest = schema.get("prefixItems", []), schema.get("items", True)
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30):
        return False
    return all(fits(one, first[i] if i < len(first) else rest, root) for i, one in enumerate(value))


def length(value, schema, root):
    return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30)


def bounds(value, schema, root):
    return (schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"]))

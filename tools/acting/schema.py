"""JSON schemas -> grammars (see grammar.py) of the JSON that fits them, written as `tools.template.compact` writes it.

Held exactly: types (several, nullable), properties, required, items, prefixItems, lengths of strings and arrays, enum,
const, bounds of numbers, anyOf, oneOf, $ref. What a grammar cannot hold (pattern, multipleOf, …) is named in `unheld`.
Members that are not in `properties` are never written, unless there are no properties at all.
"""
import math

from tools.acting.grammar import DIGIT, DIGITS, FRACTION, TEXT_ITEM, Between, Grammar, Key, Members, Repeat, TooLong
from tools.template import compact, function_of

UNHELD = ("pattern", "multipleOf", "not", "if", "allOf", "patternProperties", "uniqueItems", "contains",
          "dependentRequired", "dependentSchemas", "propertyNames", "minProperties", "maxProperties")
MOST_NODES = 4000
MOST_PLACES = 200               # of one array, each with a schema of its own
DEEPEST = 40                    # how deep schemas may be written in each other
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
BOUND = 10 ** DIGITS - 1
FREE_TEXT = (b'"', Repeat(TEXT_ITEM), b'"')


class SchemaError(ValueError):
    """A schema that nothing can fit, or that is none; the message is for people."""


def call_grammar(tools, name=None):
    """What may stand between the marks of a call. tools: definitions as tools/reading/acting.py gives them; name: the
    one function that may be called. -> (Grammar, Value to start from, unheld keywords). SchemaError."""
    maker, calls = Maker(), []
    for tool in tools:
        inner = function_of(tool)
        if name in (None, inner["name"]):
            parameters = inner.get("parameters", inner.get("input_schema"))
            parameters = parameters or {"properties": {}}
            if not isinstance(parameters, dict) or kinds_of(parameters) not in (["object"], list(TYPES)):
                raise SchemaError(f"{inner['name']} 的 parameters 应是 type 为 object 的 schema")
            maker.root = parameters = {"type": "object", **parameters}
            head = f'{{"name": {compact(inner["name"])}, "arguments": '
            calls.append((_bytes(head), maker.value(parameters), b"}"))
    if not calls:
        raise SchemaError(f"没有叫 {name} 的工具")
    return maker.done(calls)


def json_grammar(schema):
    """What fits a schema; None: any object. -> as `call_grammar`"""
    maker = Maker(schema)
    return maker.done([(maker.value({"type": "object"} if schema is None else schema),)])


def _bytes(text):
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise SchemaError("schema 里有不能用的字符（孤立的代理字符）") from None


def _literal(value):
    try:
        return _bytes(compact(value))
    except SchemaError:
        raise
    except (ValueError, TypeError):
        raise SchemaError("enum、const 里有 JSON 没有的值") from None


def kinds_of(schema):
    """The types that a schema allows."""
    said = schema.get("type")
    if said is None:
        said = "object" if "properties" in schema else "array" if "items" in schema or "prefixItems" in schema else None
    said = list(TYPES) if said is None else [said] if isinstance(said, str) else said
    if not isinstance(said, list) or not said or not all(one in TYPES for one in said):
        raise SchemaError(f"type 只能是 {'、'.join(TYPES)}")
    return said + ["null"] * (schema.get("nullable") is True and "null" not in said)


def is_a(value, kind):
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or kind == "number" and isinstance(value, float)
        return whole and not isinstance(value, bool)
    return isinstance(value, {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}[kind])


def _count(schema, name, otherwise):
    value = schema.get(name, otherwise)
    if value is not otherwise and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise SchemaError(f"{name} 应是不小于 0 的整数")
    return value


class Maker:
    """Turns the schemas of one document into nodes; a $ref that leads back to itself becomes a node that does."""

    def __init__(self, root=None):
        self.grammar, self.root, self.known, self.unheld, self.depth = Grammar(), root, {}, set(), 0

    def done(self, ways):
        start = self.grammar.add(ways)
        try:
            endless = self.grammar.close()
        except TooLong:
            raise SchemaError("这个 schema 要的 JSON 太长（minLength、minItems 太大，或一层套一层地成倍变长）") from None
        if endless:
            raise SchemaError("这个 schema 没有写得完的 JSON（它包含它自己，或下限大过上限）")
        return self.grammar, start, tuple(sorted(self.unheld))

    def resolved(self, schema):
        """A schema behind its references."""
        for _ in range(DEEPEST):
            one = schema.get("allOf") if isinstance(schema, dict) else None
            if isinstance(one, list) and len(one) == 1 and isinstance(one[0], dict):
                schema = {**{k: v for k, v in schema.items() if k != "allOf"}, **one[0]}
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._pointed(schema["$ref"])
        raise SchemaError("$ref 指来指去，没有尽头")

    def _pointed(self, path):
        found = self.root
        for part in str(path).lstrip("#").strip("/").split("/") if str(path).strip("#/") else ():
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(path, str) or not path.startswith("#") or found is None:
            raise SchemaError(f"$ref 指向的 {path!r} 不在这个 schema 里".replace("'", ""))
        return found

    def value(self, schema):
        """-> the Value whose sentences fit the schema."""
        schema = self.resolved(self._any if schema is True else schema)
        if not isinstance(schema, dict):
            raise SchemaError("schema 应是 JSON 对象")
        if id(schema) not in self.known:
            if len(self.grammar.nodes) > MOST_NODES or self.depth > DEEPEST:
                raise SchemaError("schema 太大或太深")
            made = self.grammar.add()
            self.known[id(schema)] = (made, schema)         # the schema too: its id stays its own
            self.depth += 1
            self.grammar.nodes[made.node] += self._ways(schema)
            self.depth -= 1
        return self.known[id(schema)][0]

    def _ways(self, schema):
        self.unheld |= {name for name in UNHELD if name in schema}
        for name in ("anyOf", "oneOf"):
            if name in schema:
                if not isinstance(schema[name], list) or not schema[name]:
                    raise SchemaError(f"{name} 应是 schema 的列表")
                rest = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf", "$defs", "definitions")}
                return [(self.value({**rest, **one} if isinstance(one, dict) and "$ref" not in one else one),)
                        for one in schema[name]]
        kinds = kinds_of(schema)
        if "enum" in schema or "const" in schema:
            values = schema.get("enum") if "const" not in schema else [schema["const"]]
            fitting = [v for v in values if any(is_a(v, kind) for kind in kinds)] if isinstance(values, list) else []
            return [(_literal(one),) for one in fitting]
        kinds = [kind for kind in kinds if kind != "integer" or "number" not in kinds]
        return [way for kind in kinds for way in getattr(self, "_" + kind)(schema)]

    def _object(self, schema):
        properties, required = ({} if value is None else value for value in map(schema.get, ("properties", "required")))
        required = required or []
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise SchemaError("properties 应是对象，required 应是列表")
        if not all(isinstance(name, str) for name in required):
            raise SchemaError("required 应是名字的列表")
        more = schema.get("additionalProperties", "properties" not in schema)
        if not properties and not required:
            return self._free(more) if more is not False else [(b"{}",)]
        names = list(dict.fromkeys((*properties, *required)))
        keys = [Key(_bytes(compact(name) + ": "), self.value(properties.get(name, self._any)), name in required)
                for name in names]
        self.grammar.objects.append(keys)
        return [(b"{", Members(len(self.grammar.objects) - 1, frozenset(range(len(keys)))), b"}")]

    def _free(self, more):
        member = (*FREE_TEXT, b": ", self.value(more if isinstance(more, dict) else self._any))
        return [(b"{}",), (b"{", *member, Repeat((b", ", *member)), b"}")]

    _any = {}                                               # one object, so that it becomes one node

    def _array(self, schema):
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", None)
        first = schema.get("prefixItems") or []
        if not isinstance(first, list):
            raise SchemaError("prefixItems 应是 schema 的列表")
        items, rest = [self.value(one) for one in first], schema.get("items", self._any)
        if rest is False or rest is True or isinstance(rest, list):
            items += [self.value(one) for one in rest] if isinstance(rest, list) else []
            rest = None if rest is False else self._any
        if len(items) > MOST_PLACES:
            raise SchemaError(f"prefixItems 最多 {MOST_PLACES} 个")
        if most is not None and most < max(least, len(items)):
            items = items[:most]
        tail = self.value(rest) if rest is not None else None
        return self._listed(items, tail, least, most)

    def _listed(self, items, tail, least, most):
        """Arrays that begin with `items` (as many as are wanted) and go on with `tail`."""
        ways = []
        for count in range(len(items) + 1):
            if count < len(items) and count < least or most is not None and count > most:
                continue
            stack = [part for item in items[:count] for part in (b", ", item)][1:]
            if count < len(items) or tail is None:
                ways += [(b"[", *stack, b"]")] if count >= least else []
                continue
            left = Repeat((b", ", tail), max(0, least - count), None if most is None else most - count)
            if count:
                ways.append((b"[", *stack, left, b"]"))
            else:
                ways += [(b"[]",)] if least == 0 else []
                ways += [(b"[", tail, left.after(1), b"]")] if left.after(1) else []
        return ways

    def _string(self, schema):
        least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
        return [] if most is not None and most < least else [(b'"', Repeat(TEXT_ITEM, least, most), b'"')]

    def _bounds(self, schema):
        """-> (low, high, whether low itself is out, whether high is); None: no bound."""
        found = {}
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            value = schema.get(name)
            endless = isinstance(value, float) and not math.isfinite(value)             # 1e400
            if value is not None and not isinstance(value, bool) and (endless or not is_a(value, "number")):
                raise SchemaError(f"{name} 应是数")
            found[name] = None if isinstance(value, bool) else value
        lows = [(v, e) for v, e in ((found["minimum"], schema.get("exclusiveMinimum") is True),
                                    (found["exclusiveMinimum"], True)) if v is not None]
        highs = [(v, not e) for v, e in ((found["maximum"], schema.get("exclusiveMaximum") is True),
                                         (found["exclusiveMaximum"], True)) if v is not None]
        low, high = max(lows, default=(None, False)), min(highs, default=(None, True))
        return low[0], high[0], low[1], not high[1]

    def _integer(self, schema):
        low, high, above, below = self._bounds(schema)
        low = -BOUND if low is None else math.floor(low) + 1 if above else math.ceil(low)
        high = BOUND if high is None else math.ceil(high) - 1 if below else math.floor(high)
        return whole(low, high)

    def _number(self, schema):
        low, high, above, below = self._bounds(schema)
        free = low is None and high is None
        low, high = -BOUND if low is None else max(low, -BOUND), BOUND if high is None else min(high, BOUND)
        if low > high:
            return []
        ways = self._integer(schema)
        if free:
            return [(*way, *end) for way in ways for end in ((), POINT)] + [(b"-0", *POINT)]
        # a part behind the point wherever all of them fit: n.… is in n up to n + 1
        ways += [(*way, *POINT) for way in
                 whole(max(0, math.floor(low) + 1 if above else math.ceil(low)), math.floor(high) - 1)]
        least, most = max(0, 1 - math.ceil(high) if below else -math.floor(high)), -math.ceil(low) - 1
        ways += [(b"-", Between(least, most), *POINT)] if least <= most else []
        return ways or [(_bytes(text),) for text in _decimals(low, high, above, below)]

    def _boolean(self, schema):
        return [(b"true",), (b"false",)]

    def _null(self, schema):
        return [(b"null",)]


POINT = (b".", Repeat((DIGIT,), 1, FRACTION))
ANY_WHOLE = ((b"0",), (DIGIT - {ord("0")}, Repeat((DIGIT,), 0, DIGITS - 1)))


def whole(low, high):
    """Stacks of the whole numbers in low..high, without a leading zero or "-0"."""
    if low <= -BOUND and high >= BOUND:
        return [(sign, *way) if sign else way for sign in (b"", b"-") for way in ANY_WHOLE[bool(sign):]]
    ways = [(Between(max(low, 0), min(high, BOUND)),)] if max(low, 0) <= min(high, BOUND) else []
    least, most = max(1, -high), min(-low, BOUND)
    return ways + ([(b"-", Between(least, most))] if least <= most else [])


def _decimals(low, high, above, below):
    """Some decimals between two bounds that have no whole number between them."""
    for places in range(1, DIGITS):
        size = 10 ** places
        first, last = math.ceil(low * size), math.floor(high * size)
        found = [n / size for n in range(first, min(last, first + 20) + 1)
                 if (n / size > low if above else n / size >= low) and (n / size < high if below else n / size <= high)]
        if found:
            return [compact(one) for one in found if "e" not in compact(one)]
    return []

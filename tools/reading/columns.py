"""--columns user=问题 assistant=回答: which of the data's own fields means what."""
from tools.errors import UserError

# the field that tools.reading.shapes knows -> what people call it, LLaMA-Factory's names among them
NAMES = {"instruction": "user question prompt instruction human", "input": "input context",
         "output": "assistant answer response output target", "system": "system", "history": "history",
         "messages": "messages conversations", "chosen": "chosen", "rejected": "rejected", "text": "text",
         "reasoning_content": "thinking", "tools": "tools"}
MEANINGS = {name: field for field, names in NAMES.items() for name in names.split()}
WHOLE = ({"instruction", "output"}, {"messages"}, {"chosen", "rejected"}, {"text"})      # each is a shape of its own


def columns_of(value):
    """["user=问题", …] or {"user": "问题", …} -> {field that we know: field of the data}. Raises UserError (2)."""
    pairs = value.items() if isinstance(value, dict) else [one.partition("=")[::2] for one in _listed(value)]
    pairs = [(meaning.strip().lower(), name) for meaning, name in pairs]
    asked = any(MEANINGS.get(meaning) == "instruction" for meaning, _ in pairs)
    found = {}
    for meaning, name in pairs:
        known = MEANINGS.get(meaning)
        if meaning == "query":                                          # adds to a prompt; alone it asks
            known = "input" if asked else "instruction"
        if known is None or not isinstance(name, str) or not name.strip():
            raise UserError(f"columns 里的 {meaning}={name} 无法识别。写法：--columns user=问题的字段 assistant=回答的字段；"
                            f"等号左边可用 {' '.join(names.split()[0] for names in NAMES.values())}。")
        if known in found:
            raise UserError(f"columns 里 {meaning} 说了两次，请只留一个。")
        found[known] = name.strip()
    return found


def _listed(value):
    return [value] if isinstance(value, str) else value


def fields_of(options):
    """What parse_line is told of a stage's options: text_field, or the columns as a dict."""
    if not options.get("columns"):
        return options.get("text_field")
    found = columns_of(options["columns"])
    if options.get("text_field"):
        raise UserError("columns 和 text_field 只能用一个：正文也可以写 --columns text=字段。")
    return found


def renamed(row, columns):
    """The object under the names we know. Columns that make a shape hide all other fields, else they add to them."""
    found = {field: value for field, name in columns.items() if (value := _at(row, name)) is not None}
    if any(shape <= columns.keys() for shape in WHOLE):
        return found
    return {**{name: value for name, value in row.items() if name not in columns.values()}, **found}


def _at(row, name):
    """A field's value; a.b is b of the object a."""
    if name in row:
        return row[name]
    first, _, rest = name.partition(".")
    return _at(row[first], rest) if rest and isinstance(row.get(first), dict) else None

"""One value of one key: read it from JSON, YAML or the command line, check its type, range and choices."""
import difflib
import glob
import json
import math
import os
import re

from tools.config.keys import KEYS
from tools.errors import UserError

NULL_WORDS = ("none", "null", "~", "")
TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
LIST_KINDS = ("paths", "strings", "ints")
_KIND_NAMES = {"int": "整数", "float": "数", "bool": "true 或 false", "str": "字符串", "path": "路径", "paths": "路径或路径的列表",
               "strings": "字符串或字符串的列表", "ints": "整数的列表"}


def nearest(name, names):
    """The known name that looks most like `name`, or None."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def check_value(name, value, label=None):
    """The value in its proper type. Raises UserError (2) that names `label` (default: the key) and what is allowed.

    Numbers may come as text, because YAML reads 2e-4 as text; `true` is no number and 1 is no bool.
    """
    key, label = KEYS[name], label or name
    if key.kind == "choice":
        return _choice(key, value, label)
    if name == "resume" and (value is None or isinstance(value, bool)):      # null and no mean "do not"
        return "auto" if value else "none"
    if value is None or (isinstance(value, str) and name != "resume" and value.strip().lower() in ("none", "null")):
        if key.null:
            return None
        if key.default == []:
            return []
        raise UserError(f"配置 {label} 不能是空值，应为{_KIND_NAMES[key.kind]}。")
    if key.default == "auto" and isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    if name == "columns" and isinstance(value, dict):
        value = [f"{meaning}={field}" for meaning, field in value.items()]
    if key.kind in LIST_KINDS:
        return _several(key, value, label)
    return _single(key, value, label)


def from_text(name, text, label=None):
    """The value of a key from a command-line word (or several words for a list key)."""
    key, label = KEYS[name], label or f"--{name}"
    words = [text] if isinstance(text, str) else list(text)
    if key.kind in LIST_KINDS:
        if len(words) == 1:
            words = _split_list(key, words[0], label)
        return check_value(name, words, label)
    if len(words) != 1:
        raise UserError(f"{label} 只能有一个值。")
    word = words[0].strip()
    if key.null and word.lower() in NULL_WORDS:
        return None
    if key.kind == "bool":
        if word.lower() in TRUE_WORDS:
            return True
        if word.lower() in FALSE_WORDS:
            return False
        raise UserError(f"{label} 应为 true 或 false，而不是“{word}”。")
    return check_value(name, words[0], label)


def _split_list(key, text, label):
    """`["a","b"]`, `a,b` or a single name; a path that contains a comma and exists stays whole."""
    if text.strip().lower() in NULL_WORDS:
        return None if key.null else []
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            if key.kind != "paths":
                raise UserError(f"{label} 的列表写得不对：{text}") from None
    if key.kind == "paths" and os.path.exists(text):
        return text
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return parts[0] if len(parts) == 1 and key.kind != "ints" else parts


def _choice(key, value, label):
    # YAML turns a bare no/yes into a bool, JSON people write null for "none".
    if isinstance(value, bool):
        value = "yes" if value else "no" if "no" in key.choices else "none"
    if value is None and "none" in key.choices:
        value = "none"
    if isinstance(value, str):
        for choice in key.choices:
            if value.strip().lower() == choice.lower():
                return choice
    raise UserError(f"配置 {label} 不能是 {show(value)}，可选：{' '.join(key.choices)}。")


def _several(key, value, label):
    item_kind = {"paths": "path", "strings": "str", "ints": "int"}[key.kind]
    item = key._replace(kind=item_kind)
    if not isinstance(value, (list, tuple)):
        single = _single(item, value, label)
        return [single] if key.kind == "ints" or isinstance(key.default, list) else single
    if not value and key.default != []:
        raise UserError(f"配置 {label} 是空的列表，至少要有一项。")
    return [_single(item, one, label) for one in value]


def _single(key, value, label):
    kind = key.kind
    if kind == "bool":
        if isinstance(value, bool):
            return value
    elif kind in ("int", "float"):
        number = _number(value)
        if number is not None and (kind == "float" or number == int(number)):
            return _in_range(key, float(number) if kind == "float" else int(number), label)
    elif isinstance(value, str) and (value.strip() or kind == "str") and "\0" not in value:
        return value
    raise UserError(f"配置 {label} 应为{_KIND_NAMES[kind]}，而不是 {show(value)}。")


def _number(value):
    """A finite int or float, also from text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip().replace("_", "")
        try:
            value = int(text) if re.fullmatch(r"[+-]?\d{1,30}", text) else float(text)
        except ValueError:
            return None
    if isinstance(value, int):
        return value if abs(value) < 2 ** 64 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _in_range(key, number, label):
    wrong = ((key.low is not None and number < key.low) or (key.high is not None and number > key.high)
             or (key.above is not None and number <= key.above))
    if not wrong:
        return number
    limits = [f"不小于 {show(key.low)}"] if key.low is not None else []
    limits += [f"大于 {show(key.above)}"] if key.above is not None else []
    limits += [f"不大于 {show(key.high)}"] if key.high is not None else []
    off = "；不要时写 null" if key.null and key.default != 0 else ""
    raise UserError(f"配置 {label} 是 {show(number)}，应{'且'.join(limits)}{off}。")


def show(value):
    """A value as the user would write it in JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def absolute(name, value, base, out_dir=None):
    """Path keys made absolute: relative ones count from `base`. `{out_dir}/x` waits until `out_dir` is known."""
    if isinstance(value, list):
        return [absolute(name, one, base, out_dir) for one in value]
    if value is None or value.startswith("hf:"):
        return value
    if name == "resume" and value.lower() in ("auto", "none"):
        return value.lower()
    if value.startswith("{out_dir}"):
        return value if out_dir is None else os.path.normpath(out_dir + value[len("{out_dir}"):])
    value = os.path.expanduser(value)
    if os.sep == "/" and "\\" in value and not os.path.exists(os.path.join(base, value)):
        value = value.replace("\\", "/")        # a configuration written on Windows
    if os.path.isabs(value):
        return os.path.normpath(value)
    # A folder called [my data] is no pattern; only what the user wrote may be one.
    if any(c in value for c in "*?[") and not os.path.exists(os.path.join(base, value)):
        base = glob.escape(os.fspath(base))
    return os.path.normpath(os.path.join(base, value))

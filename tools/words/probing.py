"""How a family writes its conversations, as data: found by asking its own chat template about known sentences.

What a template writes between two contents depends on who speaks before and after only, for every family that we know;
a template that does otherwise is refused by the last check, which compares whole conversations.
"""
import re

from tools.errors import UserError

MARKS = {"system": "\ue001S{}\ue002", "user": "\ue001U{}\ue002", "assistant": "\ue001A{}\ue002"}
ROLES = {"S": "system", "U": "user", "A": "assistant"}
# What is asked for: s system, u user, a assistant; ! the beginning of a reply at the end
PROBES = ("ua", "u!", "uau!", "uaua", "sua", "su!", "suaua", "suau!", "uauau!")
# For folders without a template of their own. Literals by (who spoke before, who speaks now).
CHATML = {"|system": "<|im_start|>system\n", "|user": "<|im_start|>user\n",
          "system|user": "<|im_end|>\n<|im_start|>user\n", "user|assistant": "<|im_end|>\n<|im_start|>assistant\n",
          "user|final": "<|im_end|>\n<|im_start|>assistant\n", "user|!": "<|im_end|>\n<|im_start|>assistant\n",
          "assistant|user": "<|im_end|>\n<|im_start|>user\n", "final|": "<|im_end|>\n"}
PLAIN = {"|system": "{begin}", "|user": "{begin}用户：", "system|user": "\n用户：", "user|assistant": "\n助手：",
         "user|final": "\n助手：", "user|!": "\n助手：", "assistant|user": "{end}\n用户：", "final|": "{end}"}


def probed(template, ends, names):
    """-> {"begin", "end": names of the tokens around a text; "between": {"before|after": literal};
    "strip": {"before|after": [what the content before loses at its end, what the one after loses at its beginning]},
    each "" nothing, "\\n" line breaks, "all" white space; "off": the beginning of a reply without thinking, or None;
    "talks":
    whether the folder has a template}. UserError 4 for a template that cannot be written like this."""
    found = _asked(template, ends) if template else None
    if found is None:
        known = CHATML if {"<|im_start|>", "<|im_end|>"} <= names.keys() else PLAIN
        found = {"between": {k: v.replace("{begin}", ends["begin"]).replace("{end}", ends["end"])
                             for k, v in known.items()}, "strip": {}, "off": None, "talks": False}
    return {**ends, **found}


def renderer(template, ends):
    """A function (messages, **settings) -> string, from a chat template."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise TemplateError(message)
    rules = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    rules.globals["raise_exception"] = refuse
    made = rules.from_string(
        re.sub(r"\{%(-?)\s*(end)?generation\s*(-?)%\}", r"{%\1 if true \3%}{%\1 endif \3%}", template))

    def render(messages, **settings):
        return made.render(messages=messages, bos_token=ends["begin"], eos_token=ends["end"], tools=None,
                           **{"add_generation_prompt": False, **settings})
    return render


def _asked(template, ends):
    """None where the template cannot even write one question and its answer."""
    from jinja2 import TemplateError
    try:
        render = renderer(template, ends)
        render(_conversation("ua"))
    except (TemplateError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    between, whole = {}, []
    for probe in PROBES:
        try:
            text = render(_conversation(probe), add_generation_prompt=probe.endswith("!"))
        except (TemplateError, TypeError):                  # some know no system
            continue
        whole.append((probe, text))
        for key, literal in _literals(probe, text):
            if between.setdefault(key, literal) != literal:
                raise UserError(f"对话模板在“{key}”之间写的不总是一样，这样的模板带不进来。", 4)
    strip = _stripped(render, [probe for probe, _ in whole], between)
    off = _begun(render, between.get("user|!", ""), enable_thinking=False)
    return {"between": between, "strip": strip, "off": off, "talks": True}


def _conversation(probe, pad=""):
    return [{"role": ROLES[c.upper()], "content": pad + MARKS[ROLES[c.upper()]].format(i) + pad}
            for i, c in enumerate(probe) if c != "!"]


def _literals(probe, text):
    """(key, literal) between the contents of a rendered probe. UserError 4 where a content is missing or repeated."""
    asked = [MARKS[ROLES[c.upper()]].format(i) for i, c in enumerate(probe) if c != "!"]
    if [hit[0] for hit in re.finditer("\ue001..?\ue002", text)] != asked:
        raise UserError("对话模板没有照原样写出每一句话，这样的模板带不进来。", 4)
    roles = ["", *(ROLES[c.upper()] for c in probe if c != "!")]
    if probe.endswith("a"):
        roles[-1] = "final"
    roles.append("!" if probe.endswith("!") else "")
    for before, after, literal in zip(roles, roles[1:], re.split("\ue001..?\ue002", text)):
        yield f"{before}|{after}", literal


def _stripped(render, probes, between):
    """{key: [at the end of the content before, at the beginning of the one after]}, see `probed`."""
    lost = {}
    for pad in ("\u2003", "\n"):
        for probe in probes:
            text = render(_conversation(probe, pad), add_generation_prompt=probe.endswith("!"))
            for key, literal in _literals(probe, text):
                bare, ends = between[key], key.split("|")
                left = ends[0] and not literal.startswith(pad + bare[:1])
                right = ends[1] not in ("", "!") and not literal.endswith(bare[-1:] + pad)
                lost.setdefault(key, {})[pad] = [bool(left), bool(right)]
    return {key: [("all" if wide else "\n" if line else "") for wide, line in zip(each["\u2003"], each["\n"])]
            for key, each in lost.items() if any(each["\n"] + each["\u2003"])}


def _begun(render, usual, **settings):
    """What opens a reply under these settings, None where they change nothing."""
    literal = dict(_literals("u!", render(_conversation("u!"), add_generation_prompt=True, **settings)))["user|!"]
    return None if literal == usual else literal

"""The dialogue form of tools/template.py as a Jinja template, the language of transformers, vLLM and llama.cpp.

A template makes one string, and a string cannot tell a role from content that spells one. So whatever content could
spell is broken up: every special token begins with `<|`, and between these two characters content gets a mark. The
tokenizer of the Hugging Face folder takes its marks out again after it has cut the special tokens out (`unmarked`):
there content is text, exactly as in ours. llama.cpp has no such step; its mark is a space without width that stays.
"""

import json

from tools.template import COLON, END, ROLE_NAMES

OPEN = "<|"
MARK = "\ufdd0"         # no character, by Unicode's own word; where content holds it anyway the digit behind tells
BREAK, ITSELF = MARK + "1", MARK + "0"
NO_WIDTH = "\u200b"
SAFE_HF = f"(message['content'].split('{MARK}') | join('{ITSELF}')).split('{OPEN}') | join('<{BREAK}|')"
SAFE_GGUF = f"message['content'].split('{OPEN}') | join('<{NO_WIDTH}|')"

TEMPLATE = """{%- set names = @NAMES@ -%}
{{- '@END@' -}}
{%- for message in messages -%}
{%- if message['role'] not in names -%}
{{- raise_exception('role must be one of: system, developer, user, assistant') -}}
{%- endif -%}
{%- if message['content'] is not string -%}
{{- raise_exception('content must be a string') -}}
{%- endif -%}
{%- set content = @SAFE@ -%}
{{- names[message['role']] + '@COLON@' -}}
{%- if message['role'] == 'assistant' -%}
@LEARN@{{- content + '@END@' -}}@LEARNED@
{%- else -%}
{{- content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- names['assistant'] + '@COLON@' -}}
{%- endif -%}
"""


def hf_template():
    """For transformers and what reads its folders. Replies and their ends, which a trainer learns from, are
    `generation`."""
    return _filled(SAFE_HF, "{%- generation -%}", "{%- endgeneration -%}")


def gguf_template():
    """For llama.cpp and its kin, some of which know plain Jinja only."""
    return _filled(SAFE_GGUF, "", "")


def unmarked():
    """The normalizer of tokenizer.json that takes the marks of `hf_template` out of what is no special token."""
    steps = ((BREAK, ""), (ITSELF, MARK))
    return {"type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": mark}, "content": text} for mark, text in steps]}


def _filled(safe, learn, learned):
    names = {role: f"<|{name}|>" for role, name in {**ROLE_NAMES, "developer": ROLE_NAMES["system"]}.items()}
    parts = {"@NAMES@": json.dumps(names), "@SAFE@": safe, "@LEARN@": learn, "@LEARNED@": learned, "@END@": END,
             "@COLON@": COLON}
    source = TEMPLATE
    for name, value in parts.items():
        source = source.replace(name, value)
    return source

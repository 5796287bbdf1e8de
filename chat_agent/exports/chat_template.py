"""The dialogue form of tools/template.py as a Jinja template, the language of transformers, vLLM and llama.cpp.

A template makes one string, and a string cannot tell a role from content that spells one. So whatever content could
spell is broken up: every special token begins with `<|`, and between these two characters content gets a mark. The
tokenizer of the Hugging Face folder takes its marks out again after it has cut the special tokens out (`unmarked`):
there content is text, exactly as in ours. llama.cpp has no such step; its mark is a space without width that stays.
"""

import json
import re

from tools.template import CALL, COLON, END, ROLE_NAMES, THINK

OPEN = "<|"
MARK = "\ufdd0"         # no character, by Unicode's own word; where content holds it anyway the digit behind tells
BREAK, ITSELF = MARK + "1", MARK + "0"
NO_WIDTH = "\u200b"
SAFE_HF = f"((@.split('{MARK}') | join('{ITSELF}')).split('{OPEN}') | join('<{BREAK}|'))"
SAFE_GGUF = f"(@.split('{OPEN}') | join('<{NO_WIDTH}|'))"

# ⟦…⟧: what content could spell, made safe. A conversation without thoughts, calls and tools takes none of the branches.
TEMPLATE = """{%- set names = @NAMES@ -%}
{{- '@END@' -}}@OFFER@
{%- for message in messages -%}
{%- if message['role'] not in names -%}
{{- raise_exception('role must be one of: system, developer, user, assistant, tool') -}}
{%- endif -%}
{%- set calls = message['tool_calls'] if message['role'] == 'assistant' and message['tool_calls'] else [] -%}
{%- if message['content'] is not string and not calls -%}
{{- raise_exception('content must be a string') -}}
{%- endif -%}
{%- set content = ⟦message['content']⟧ if message['content'] is string else '' -%}
{{- names[message['role']] + '@COLON@' -}}
{%- if message['role'] == 'assistant' -%}
@LEARN@@REASON@
{%- for call in calls -%}
{%- set asked = call['function'] if call['function'] else call -%}
{%- set given = asked['arguments'] if asked['arguments'] is string else asked['arguments'] | tojson -%}
{%- set text = '{"name": ' ~ (asked['name'] | tojson) ~ ', "arguments": ' ~ given ~ '}' -%}
{{- '@CALL@' ~ ⟦text⟧ ~ '@CALLED@' -}}
{%- endfor -%}
{{- content + '@END@' -}}@LEARNED@
{%- else -%}
{{- content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- names['assistant'] + '@COLON@' -}}@BEGIN@
{%- endif -%}
"""
# Parts for a model that has learned to call and to think; others are left alone whatever the caller says.
OFFER = """
{%- if tools -%}
{{- '@TOOLS@@COLON@' ~ ⟦(tools | tojson)⟧ -}}
{%- endif -%}"""
REASON = """
{%- if message['reasoning_content'] is string -%}
{{- '@THINK@' + ⟦message['reasoning_content']⟧ + '@THOUGHT@' -}}
{%- endif -%}"""
BEGIN = """
{%- if enable_thinking is defined and enable_thinking is not none -%}
{{- '@THINK@' if enable_thinking else '@THINK@@THOUGHT@' -}}
{%- endif -%}"""


def hf_template(acts=()):
    """For transformers and what reads its folders. Replies and their ends, which a trainer learns from, are
    `generation`. acts: what the model has learned beside speaking."""
    return _filled(SAFE_HF, acts, "{%- generation -%}", "{%- endgeneration -%}")


def gguf_template(acts=()):
    """For llama.cpp and its kin, some of which know plain Jinja only."""
    return _filled(SAFE_GGUF, acts, "", "")


def unmarked():
    """The normalizer of tokenizer.json that takes the marks of `hf_template` out of what is no special token."""
    steps = ((BREAK, ""), (ITSELF, MARK))
    return {"type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": mark}, "content": text} for mark, text in steps]}


def surface(name):
    """How a reserved name is written in exports: <|User|>, <|im_end|>, <|PAD|>, …"""
    return name if name.startswith("<|") else f"<|{name.strip('[]')}|>"


def _filled(safe, acts, learn, learned):
    roles = {**ROLE_NAMES, "developer": ROLE_NAMES["system"]}
    tools = surface(roles.pop("tools"))
    names = {role: surface(name) for role, name in roles.items()}
    (think, thought), (call, called) = ([surface(mark) for mark in pair] for pair in (THINK, CALL))
    thinks, calls = "thinking" in acts, "calls" in acts
    parts = {"@BEGIN@": BEGIN * thinks, "@REASON@": REASON * thinks, "@OFFER@": OFFER * calls,
             "@NAMES@": json.dumps(names), "@LEARN@": learn, "@LEARNED@": learned, "@END@": END, "@COLON@": COLON,
             "@TOOLS@": tools, "@THINK@": think,
             "@THOUGHT@": thought, "@CALL@": call, "@CALLED@": called}
    source = TEMPLATE
    for name, value in parts.items():
        source = source.replace(name, value)
    return re.sub("⟦(.*?)⟧", lambda hit: safe.replace("@", hit[1]), source)

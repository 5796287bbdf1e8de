"""The dialogue form of tools/template.py as a Jinja template, the language of transformers, vLLM and llama.cpp.

A template makes one string, and a string cannot tell a role from content that spells one. So whatever content could
spell is broken up: every special token begins with `<|`, and between these two characters content gets a mark. The
tokenizer of the Hugging Face folder takes its marks out again after it has cut the special tokens out (`unmarked`):
there content is text, exactly as in ours. llama.cpp has no such step; its mark is a space without width that stays.
"""

import json
import re

from tools.template import CALL, COLON, DEFINED, END, FORM, ROLE_NAMES, THINK

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
{{- '@TOOLS@@COLON@' -}}
{%- for tool in tools -%}
{{- '' if loop.first else '\n' -}}
{%- set wrapped = tool['function'] is mapping -%}
{%- set it = tool['function'] if wrapped else tool -%}
{%- set form = it['parameters'] if it['parameters'] else {'properties': {}} -%}
{%- set about = it['description'] if it['description'] else '' -%}
{%- set odd = namespace(found=form is not mapping or about is not string) -%}
{%- for name, value in tool.items() if wrapped and name not in ['type', 'function'] -%}
{%- set odd.found = true -%}
{%- endfor -%}
{%- for name, value in it.items() if name not in ['type', 'strict', @DEFINED@] -%}
{%- set odd.found = true -%}
{%- endfor -%}
{%- if not odd.found -%}
{%- for name, value in form.items() if name not in [@FORM@] or name == 'additionalProperties' and value -%}
{%- set odd.found = true -%}
{%- endfor -%}
{%- endif -%}
{%- set needed = form['required'] if not odd.found and form['required'] else [] -%}
{%- set listed = needed is iterable and needed is not string and needed is not mapping -%}
{%- if odd.found or form['properties'] is not mapping or not listed -%}
{{- ⟦(tool | tojson)⟧ -}}
{%- else -%}
{{- ⟦it['name']⟧ ~ '(' -}}
{%- for name, schema in form['properties'].items() -%}
{%- set plain = namespace(still=schema is mapping and schema['type'] is string) -%}
{%- set parts = schema.items() if plain.still else [] -%}
{%- for key, value in parts if key not in ['type', 'description'] or value is not string -%}
{%- set plain.still = false -%}
{%- endfor -%}
{%- set about_it = ' ' ~ schema['description'] if plain.still and schema['description'] else '' -%}
{%- set said = schema['type'] ~ about_it if plain.still else schema | tojson -%}
{{- ('' if loop.first else ', ') ~ ⟦name⟧ ~ ('' if name in needed else '?') -}}
{{- '' if said == 'string' else ': ' ~ ⟦said⟧ -}}
{%- endfor -%}
{{- ')' ~ (' ' ~ ⟦about⟧ if about else '') -}}
{%- endif -%}
{%- endfor -%}
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
             "@THOUGHT@": thought, "@CALL@": call, "@CALLED@": called, "@DEFINED@": repr(DEFINED)[1:-1],
             "@FORM@": repr(FORM)[1:-1]}
    source = TEMPLATE
    for name, value in parts.items():
        source = source.replace(name, value)
    return re.sub("⟦(.*?)⟧", lambda hit: safe.replace("@", hit[1]), source)

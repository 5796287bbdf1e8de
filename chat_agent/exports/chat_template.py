"""The dialogue form of tools/template.py as a Jinja template, the language of transformers, vLLM and llama.cpp.

A template makes one string, and a string cannot tell a role from content that spells one. Content that contains the surface form
of a reserved token is therefore refused instead of rendered.
"""

import json

from tools.template import COLON, END, ROLE_NAMES

TEMPLATE = """{%- set markers = @MARKERS@ -%}
{%- set names = @NAMES@ -%}
{{- '@END@' -}}
{%- for message in messages -%}
{%- if message['role'] not in names -%}
{{- raise_exception('role must be one of: system, user, assistant') -}}
{%- endif -%}
{%- if message['content'] is not string -%}
{{- raise_exception('content must be a string') -}}
{%- endif -%}
{%- for marker in markers -%}
{%- if marker in message['content'] -%}
{{- raise_exception('content must not contain ' + marker) -}}
{%- endif -%}
{%- endfor -%}
{{- names[message['role']] + '@COLON@' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}
{{- '@END@' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- names['assistant'] + '@COLON@' -}}
{%- endif -%}
"""


def chat_template(markers):
    """markers: the surface forms that content may not contain. -> Jinja source"""
    names = {role: f"<|{name}|>" for role, name in ROLE_NAMES.items()}
    parts = {"@MARKERS@": json.dumps(list(markers)), "@NAMES@": json.dumps(names), "@END@": END, "@COLON@": COLON}
    source = TEMPLATE
    for name, value in parts.items():
        source = source.replace(name, value)
    return source

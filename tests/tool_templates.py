"""Chat templates with tools, as checkpoints have them, shortened."""

HERMES = """{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}{%- if m.tool_calls %}{%- for c in m.tool_calls %}
{%- if (loop.first and m.content) or not loop.first %}{{ '\\n' }}{% endif %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{%- endfor %}{% endif %}<|im_end|>
{% endif %}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Arguments as Gemma 4's template writes them: bare keys, strings in quotes of their own.
GEMMA_4 = """{%- macro value(v) -%}
{%- if v is string -%}{{ '<|"|>' + v + '<|"|>' }}
{%- elif v is boolean -%}{{ 'true' if v else 'false' }}
{%- elif v is none -%}null
{%- elif v is mapping -%}{{ '{' }}
{%- for key, item in v.items() -%}{{ key }}:{{ value(item) }}{{ ',' if not loop.last }}
{%- endfor -%}{{ '}' }}
{%- elif v is sequence -%}[{%- for item in v -%}{{ value(item) }}{{ ',' if not loop.last }}
{%- endfor -%}]
{%- else -%}{{ v }}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools -%}<|turn>system\\n{%- for tool in tools -%}
<|tool>declaration:{{ tool.function.name }}{{ value(tool.function.parameters) }}<tool|>
{%- endfor -%}<turn|>\\n{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}<|tool_response>response:{{ m.content }}<tool_response|>
{%- else -%}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\\n
{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}
<|tool_call>call:{{ c.function.name }}{{ value(c.function.arguments) }}<tool_call|>
{%- endfor -%}{%- endif -%}{{ m.content }}
{%- if m.content or m.role == 'user' -%}<turn|>\\n{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|turn>model\\n{%- endif -%}""".replace("\\n", "{{ '\\n' }}")

ONE_CALL = """{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{% for m in messages %}{% if m.role != 'tool' %}
{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}
[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}
CALL {{ m.tool_calls[0].function.name }} WITH {{ m.tool_calls[0].function.arguments | tojson }}
{% endif %}[/]
{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""

NO_TOOLS = """{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""

"""How a chat template writes calls of tools: found by rendering some, and proved on others.

A call is `begin` + the name of the tool + `middle` + its arguments + `end`. They are JSON; or, if
`quote` says so, written with bare keys and strings between quotes of their own, as Gemma's are:
{city:<|"|>Paris<|"|>,days:3}.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hrm_edge.chat_template import ChatTemplate
from hrm_edge.errors import HRMEdgeError

ASKED = {"role": "user", "content": "(question)"}
PROBE = ("probe_tool", {"key_one": "(text)"})
ODD: tuple[dict[str, Any], ...] = (
    {},
    {"a": 'b "c" é', "d": 4, "e": True},
    {"f": [1, 2.5, False], "g": {"h": "i", "j": -3}, "k": "l\nm"},
)


@dataclass(frozen=True)
class ToolFormat:
    """See above. `between` two calls stands that text; None: a template for one call at a time.

    `results`: whether what a tool gave can be told.
    """

    begin: str
    middle: str
    end: str
    quote: str | None
    between: str | None
    results: bool

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as the template writes it."""
        written = _written(arguments, self.quote)
        return self.begin + name + self.middle + written + self.end


def tool_format(template: ChatTemplate) -> ToolFormat | None:
    """How `template` writes calls; None if it has no tools, or writes them in some other way."""
    try:
        return _found(template)
    except (HRMEdgeError, ValueError):
        return None


def _found(template: ChatTemplate) -> ToolFormat:
    """Raises ValueError or HRMEdgeError where there is none."""
    name, arguments = PROBE
    asked = template.render([ASKED], _tools(name))
    if name not in asked:
        raise ValueError("tools are not shown")
    plain = template.render([ASKED, {"role": "assistant", "content": "(answer)"}], None, False)
    turn_end = plain.rpartition("(answer)")[2]
    one = _rest(template, [PROBE])
    begin, after = _split(one, name)
    for quote in (None, *_quotes(after)):
        written = _written(arguments, quote)
        if after.count(written) == 1:
            break
    else:
        raise ValueError("arguments are written in some other way")
    middle, tail = after.split(written)
    end = tail.removesuffix(turn_end)
    results = {"role": "tool", "content": "(result)", "name": name, "tool_call_id": "c"}
    told = _told(template, [ASKED, _asking([PROBE]), results])
    found = ToolFormat(begin, middle, end, quote, None, "(result)" in told)
    for odd in ODD:
        if not _rest(template, [(name, odd)]).startswith(found.call(name, odd)):
            raise ValueError("other arguments are written in some other way")
    return replace(found, between=_between(template, found.call(name, arguments)))


def _between(template: ChatTemplate, call: str) -> str | None:
    """What stands between two calls; None if a template writes only one."""
    try:
        two = _rest(template, [PROBE, PROBE])
    except (HRMEdgeError, ValueError):
        return None
    between, again, _ = two.removeprefix(call).partition(call)
    return between if two.startswith(call) and again else None


def _rest(template: ChatTemplate, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """What a turn with `calls` adds to the question."""
    tools = _tools(*{name for name, _ in calls})
    before = template.render([ASKED], tools)
    whole = template.render([ASKED, _asking(calls)], tools, False)
    if not whole.startswith(before):
        raise ValueError("a call is not what comes after the question")
    return whole.removeprefix(before)


def _told(template: ChatTemplate, messages: Sequence[Any]) -> str:
    try:
        return template.render(messages, _tools(PROBE[0]))
    except HRMEdgeError:
        return ""


def _asking(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """An assistant's message with `calls`."""
    asked = [
        {"id": "c", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for name, arguments in calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": asked}


def _tools(*names: str) -> list[dict[str, Any]]:
    schema = {"type": "object", "properties": {"key_one": {"type": "string", "description": "k"}}}
    return [
        {
            "type": "function",
            "function": {"name": name, "description": "(does)", "parameters": schema},
        }
        for name in names
    ]


def _split(text: str, name: str) -> tuple[str, str]:
    before, after = text.split(name)
    return before, after


def _quotes(after: str) -> list[str]:
    """What may stand around strings, where keys are bare."""
    found = re.search(r"\{key_one:(.+?)\(text\)(.+?)\}", after, re.DOTALL)
    return [found[1]] if found and found[1] == found[2] else []


def _written(value: Any, quote: str | None) -> str:
    if quote is None:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_written(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(item, quote) for item in value) + "]"
    return f"{quote}{value}{quote}" if isinstance(value, str) else json.dumps(value)

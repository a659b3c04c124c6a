"""How templates write calls, found by rendering them; and what is found is read again."""

import json
from pathlib import Path
from typing import Any

import pytest

from hrm_edge.chat_template import ChatTemplate
from hrm_edge.runtime.decoding.tools import Call, CallReader
from hrm_edge.tool_format import ToolFormat, tool_format
from tool_templates import GEMMA_4, HERMES, NO_TOOLS, ONE_CALL


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>"}, Path("chat_template.jinja"))


def form(source: str) -> ToolFormat:
    found = tool_format(template(source))
    assert found is not None
    return found


def test_hermes_writes_json_between_tags() -> None:
    assert form(HERMES) == ToolFormat(
        '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", None, "\n", True
    )


def test_gemma_writes_bare_keys_and_its_own_quotes() -> None:
    assert form(GEMMA_4) == ToolFormat("<|tool_call>call:", "", "<tool_call|>", '<|"|>', "", True)


def test_one_call_at_a_time_and_results_that_cannot_be_told() -> None:
    found = form(ONE_CALL)
    assert found.between is None and not found.results


@pytest.mark.parametrize(
    "source",
    [
        NO_TOOLS,
        HERMES.replace("| tojson }}}", "| string }}}"),
        HERMES.replace("{{ c.function.name }}", "f"),
        HERMES.replace("<tool_call>\n", "{{ raise_exception('no') }}"),
    ],
)
def test_a_template_that_cannot_be_read_so_has_none(source: str) -> None:
    assert tool_format(template(source)) is None


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": 'Paris, {the} "one": <tag>', "days": 3},
    {"deep": {"list": ["a", 1.5, None, True, {"b": "c\nd"}], "empty": []}, "minus": -2},
]


@pytest.mark.parametrize("source", [HERMES, GEMMA_4])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_calls_are_found_wherever_a_text_is_cut(source: str, step: int) -> None:
    found = form(source)
    calls = [found.call(f"do_it-{i}", arguments) for i, arguments in enumerate(ARGUMENTS)]
    text = "Let me see. <tool\n" + (found.between or "").join(calls)
    reader, said, made = CallReader(found), "", list[Call]()
    for at in range(0, len(text), step):
        for part in reader.push(text[at : at + step]):
            if isinstance(part, str):
                said += part
            else:
                made.append(part)
    assert said.strip() == "Let me see. <tool" and not reader.flush().strip()
    assert [(call.name, json.loads(call.arguments)) for call in made] == [
        (f"do_it-{i}", arguments) for i, arguments in enumerate(ARGUMENTS)
    ]


@pytest.mark.parametrize("source", [HERMES, GEMMA_4])
def test_what_is_no_call_is_text(source: str) -> None:
    found = form(source)
    for text in ("no call", found.begin[:5], found.begin + "f{oops", found.call("f", {})[:-3]):
        reader = CallReader(found)
        parts = [*reader.push(text), reader.flush()]
        assert "".join(part for part in parts if isinstance(part, str)).strip() == text.strip()
        assert reader.calls == 0

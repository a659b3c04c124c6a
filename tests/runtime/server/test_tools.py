"""Tools over HTTP: calls that keep to their schemas, whole and in a stream, by OpenAI's client."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from openai import BadRequestError, OpenAI

from hrm_edge.runtime import load
from serving import Running, serving
from tool_templates import GEMMA_4, HERMES, NO_TOOLS, ONE_CALL

pytestmark = pytest.mark.slow

# Gemma's marks are special tokens; here, those of the tests' tokenizer stand for them.
MARKS = {"<|tool_call>": "<|special_0|>", "<tool_call|>": "<|special_1|>", '<|"|>': "<|special_2|>"}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"], "description": "Where"},
        "days": {"type": "integer", "enum": [1, 2, 3]},
        "wet": {"type": "boolean"},
    },
    "required": ["city", "wet"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
ASKED: Any = [{"role": "user", "content": "Rome?"}]
REQUIRED: Any = {"messages": ASKED, "tools": TOOLS, "tool_choice": "required", "model": "tiny"}


def templated(bundle: Path, out: Path, template: str) -> Path:
    """`bundle` with `template`, which tells the names of tools alone, since 256 bytes must do."""
    shutil.copytree(bundle, out)
    for whole in ("{{ tool | tojson }}", "{{ value(tool.function.parameters) }}"):
        template = template.replace(whole, "{{ tool.function.name }}")
    for mark, token in MARKS.items():
        template = template.replace(mark, token)
    (out / "chat_template.jinja").write_text(template)
    return out


@pytest.fixture(scope="module", params=["hermes", "gemma"])
def running(
    request: pytest.FixtureRequest, shared_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    source = {"hermes": HERMES, "gemma": GEMMA_4}[request.param]
    path = templated(shared_bundle, tmp_path_factory.mktemp("tools") / "b", source)
    with serving(load(path, threads=1, rows=2)) as server:
        yield server


@pytest.fixture
def client(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def keeps_to_schema(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert arguments == {}
    else:
        jsonschema_rs.validate(WEATHER, arguments)
    assert call.type == "function" and call.id.startswith("call_")


@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_is_required_keeps_to_its_schema(client: OpenAI, seed: int) -> None:
    done = client.chat.completions.create(
        **REQUIRED, temperature=1, seed=seed, max_tokens=200, parallel_tool_calls=False
    )
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls and len(choice.message.tool_calls) == 1
    keeps_to_schema(choice.message.tool_calls[0])


def test_a_named_tool_is_called_in_a_stream_too(client: OpenAI) -> None:
    asked = REQUIRED | {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
    whole = client.chat.completions.create(**asked, max_tokens=200).choices[0]
    stream = client.chat.completions.create(**asked, max_tokens=200, stream=True)
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert [call.index for call in calls] == [0] and chunks[-1].finish_reason == "tool_calls"
    assert whole.message.tool_calls and calls[0].function
    ours = whole.message.tool_calls[0].function  # type: ignore[union-attr]
    assert ours.name == calls[0].function.name == "weather"
    assert ours.arguments == calls[0].function.arguments
    keeps_to_schema(calls[0])
    assert not any(chunk.delta.content for chunk in chunks)


def test_several_calls(client: OpenAI, running: Running) -> None:
    found = []
    for seed in range(12):
        done = client.chat.completions.create(
            **REQUIRED, temperature=1.5, seed=seed, max_tokens=400
        )
        found.append(len(done.choices[0].message.tool_calls or []))
        for call in done.choices[0].message.tool_calls or []:
            keeps_to_schema(call)
    assert max(found) > 1, found


def test_auto_may_answer_with_text(client: OpenAI) -> None:
    asked = REQUIRED | {"tool_choice": "auto"}
    done = client.chat.completions.create(**asked, max_tokens=12, temperature=1, seed=1).choices[0]
    assert done.message.content and done.message.tool_calls is None
    assert done.finish_reason in ("stop", "length")
    none = client.chat.completions.create(**REQUIRED | {"tool_choice": "none"}, max_tokens=5)
    assert none.choices[0].message.tool_calls is None


def test_what_a_tool_gave_is_told(client: OpenAI, running: Running) -> None:
    call = {"name": "weather", "arguments": '{"city": "Rome", "wet": false}'}
    messages: Any = [
        *ASKED,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    before = running.server.metrics.prompt_tokens
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    told = running.server.metrics.prompt_tokens - before
    template = running.server.model.chat_template
    assert template is not None
    shown = [*messages[:1], dict(messages[1], content=""), *messages[2:]]
    arguments = json.loads(call["arguments"])
    shown[1]["tool_calls"] = [{"function": call | {"arguments": arguments}}]
    text = template.render(shown)
    assert "sunny" in text and told == len(running.server.model.tokenizer.encode(text))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two tools have the same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "nobody"}}},
            "tool_choice is 'nobody', which is none of the tools",
        ),
        ({"tools": []}, "tool_choice asks for a call, but there are no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format does not go with tools"),
        ({"logprobs": True}, "logprobs does not go with tools"),
        ({"messages": [{"role": "user"}]}, "a message of role user has no content"),
        (
            {
                "messages": [
                    *ASKED,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "now", "arguments": "[1]"},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "c", "content": "x"},
                ]
            },
            "the arguments of a call are '[1]', expected a JSON object",
        ),
    ],
)
def test_what_cannot_be_is_named(client: OpenAI, change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequestError, match=re.escape(says)):
        client.chat.completions.create(**REQUIRED | change)


def test_a_schema_that_cannot_be_held_to(client: OpenAI, running: Running) -> None:
    odd = {"type": "object", "properties": {"x": {"type": "string", "$ref": "#/nowhere"}}}
    tools: Any = [{"type": "function", "function": {"name": "odd", "parameters": odd}}]
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**REQUIRED | {"tools": tools})
    assert refused.value.param == "tools"


def test_models_without_tools_refuse_them(shared_bundle: Path, tmp_path: Path) -> None:
    for name, source in (("plain", NO_TOOLS), ("one", ONE_CALL)):
        path = templated(shared_bundle, tmp_path / name, source)
        with serving(load(path, threads=1)) as server:
            url = f"{server.url}/v1/chat/completions"
            answer = httpx.post(url, json={"messages": ASKED, "tools": TOOLS, "max_tokens": 3})
            card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
            assert card["tools"] == (name == "one")
            if name == "plain":
                assert answer.status_code == 400
                assert "tools is not supported by this server" in answer.text
                continue
            assert answer.status_code == 200
            told = [*ASKED, {"role": "tool", "content": "x"}]
            answer = httpx.post(url, json={"messages": told})
            assert answer.status_code == 400 and "cannot be told what a tool gave" in answer.text

"""Conversations: templates rendered as transformers renders them, and plain ones."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from hrm_edge.chat_template import Message, read_chat_template
from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime import load
from hrm_edge.runtime.chat import format_chat, transcript

CHATML = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- if tools is not none %}never{% endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | tojson + '<|im_end|>' }}
    {% if loop.last %}{{ eos_token }}{% endif %}
{%- endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TURNS: list[Message] = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Grüße?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And now?"},
]


def with_template(bundle: Path, directory: Path, template: object) -> Path:
    """A copy of `bundle` whose tokenizer_config.json holds `template`."""
    shutil.copytree(bundle, directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:2], TURNS[1:]])
def test_a_template_renders_as_in_transformers(
    shared_bundle: Path, tmp_path: Path, turns: list
) -> None:
    path = with_template(shared_bundle, tmp_path / "b", CHATML)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert format_chat(turns, "direct", read_chat_template(path)) == expected


def test_a_template_of_its_own_file_comes_first_and_a_list_is_searched(
    shared_bundle: Path, tmp_path: Path
) -> None:
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    path = with_template(shared_bundle, tmp_path / "b", named)
    assert format_chat(TURNS, "direct", read_chat_template(path)) == "yes"
    (path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert format_chat(TURNS, "direct", read_chat_template(path)) == "4"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system message') }}", "refuses .*no system message"),
        ("{% for x in %}", "refuses the conversation"),
        ("{{ messages.__class__.__mro__ }}", "refuses the conversation .*unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses the conversation"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(
    shared_bundle: Path, tmp_path: Path, template: str, message: str
) -> None:
    path = with_template(shared_bundle, tmp_path / "b", template)
    with pytest.raises(HRMEdgeError, match=message):
        format_chat(TURNS, "direct", read_chat_template(path))


def test_without_a_template_one_question_is_the_plain_prompt(shared_bundle: Path) -> None:
    model = load(shared_bundle, threads=1)
    lone: list[Message] = [{"role": "user", "content": " Hello\n"}]
    assert model.encode_chat(lone, "synth,cot") == model.encode("Hello", "synth,cot")
    assert [p.token for p in model.stream_chat(lone, max_tokens=4)] == model.generate(
        "Hello", max_tokens=4
    ).tokens


def test_without_a_template_a_conversation_is_a_transcript() -> None:
    assert transcript(TURNS) == (
        "Be <brief> & 'kind'.\n\nUser: Grüße?\n\nAssistant: Hi.\n\nUser: And now?\n\nAssistant:"
    )
    assert transcript(TURNS[:2]) == "Be <brief> & 'kind'.\n\nGrüße?"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("Hello", "messages is empty"),
        ([{"role": "user"}], r"messages\[0\] is not an object with a role and a text"),
        (["Hello"], r"messages\[0\] is not an object"),
        ([{"role": "wizard", "content": "x"}], r"messages\[0\].role is 'wizard', expected one of"),
        ([TURNS[1], TURNS[0]], r"messages\[1\] is a system message"),
        (TURNS[:3], "the last message is not the user's"),
        ([{"role": "user", "content": " "}], "the prompt is empty"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, message: str) -> None:
    with pytest.raises(HRMEdgeError, match=message):
        format_chat(messages, "direct")

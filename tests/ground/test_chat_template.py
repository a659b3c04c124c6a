"""Chat templates written out as fixed texts, for devices that have no Jinja."""

import json
import shutil
from pathlib import Path

import pytest

from hrm_edge.bundle import PROMPT_FORMAT, Bundle, Manifest
from hrm_edge.chat_template import ChatTemplate, Message, read_chat_template, written_out
from hrm_edge.export import export
from hrm_edge.runtime import load

TINY = Path(__file__).parents[2] / "hrm_edge" / "data" / "hrm_tiny"
CHATML = """{% if messages[0].role != 'system' %}<|im_start|>system
Be brief.<|im_end|>
{% endif %}
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GEMMA = """{{ bos_token }}{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 is even) %}{{ raise_exception('order') }}{% endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) }}
{{ message.content }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>"}, Path("chat_template.jinja"))


@pytest.mark.parametrize(
    ("source", "start"),
    [
        (CHATML, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"),
        (GEMMA, "<bos><start_of_turn>user\n"),
    ],
)
def test_fixed_texts_give_what_the_template_renders(source: str, start: str) -> None:
    form = written_out(template(source))
    assert form is not None and form["start"] == start and form["conditions"] == {}
    turns: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": 'And "now"?'},
    ]
    answer, question = form["turns"]["answer"], form["turns"]["question"]
    body = f'Hi{answer}Hello!{question}And "now"?'
    assert template(source).render(turns) == form["start"] + body + form["end"]
    assert template(source).render(turns[:1]) == f"{form['start']}Hi{form['end']}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | tojson }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content }}{{ messages[0].content }}",
        "{{ messages[0].content }}, {{ strftime_now('%d %b %Y') }}",
        "{{ messages[0].content if '\"' not in messages[0].content }}",
        "{{ raise_exception('a system message is needed') }}",
        "the same for all",
    ],
)
def test_what_is_more_than_texts_around_the_question_is_not_written_out(source: str) -> None:
    assert written_out(template(source)) is None


@pytest.mark.parametrize(
    "source",
    [
        "<{{ messages[-1].content }}>",
        "<{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}>",
        "<{% for m in messages %}{{ m.content if loop.first else m.content|upper }},{% endfor %}>",
    ],
)
def test_where_only_later_turns_are_more_a_lone_question_is_written_out(source: str) -> None:
    form = written_out(template(source))
    assert form is not None and form["turns"] is None
    lone: list[Message] = [{"role": "user", "content": "x"}]
    assert form["start"] + "x" + form["end"] == template(source).render(lone)


def exported(directory: Path, source: str | None) -> Bundle:
    """hrm-tiny with a template, as a bundle."""
    shutil.copytree(TINY, directory / "checkpoint")
    if source is not None:
        (directory / "checkpoint" / "chat_template.jinja").write_text(source)
    return export(directory / "checkpoint", directory / "bundle", gate=None)


def test_a_bundle_holds_the_texts_and_the_runtime_renders_the_template(tmp_path: Path) -> None:
    bundle = exported(tmp_path, CHATML)
    found = read_chat_template(bundle.path)
    assert found is not None and bundle.manifest.prompt_format == written_out(found)
    model = load(bundle.path, threads=1)
    form = json.loads((bundle.path / "manifest.json").read_text())["prompt_format"]
    assert model.encode("2 + 2", "direct") == model.tokenizer.encode(
        form["start"] + "2 + 2" + form["end"]
    )


def test_a_bundle_says_where_it_takes_a_program(tmp_path: Path) -> None:
    bundle = exported(tmp_path, "{{ messages | tojson }}")
    assert Manifest.read(bundle.path).prompt_format is None


def test_without_a_template_the_format_is_hrm_texts(tmp_path: Path) -> None:
    assert exported(tmp_path, None).manifest.prompt_format == PROMPT_FORMAT

"""A checkpoint's chat template: rendered as its makers do, or written out for who has no Jinja.

HRM-Text itself has none (see prompt.py); derivatives do. Knows neither tokens nor models.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from hrm_edge.config import read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import CHAT_TEMPLATE, TOKENIZER_CONFIG

PLAIN = ("(one)", "(two)", "(three)", "(four)", "(five)")
ODD = ('1. "a" <b>\n& {{c}}', "é\\n😀 d", "e'f\n\n`g`", "# h", "I\ti")


class Message(TypedDict):
    """One turn; `role` is system (first only), user or assistant."""

    role: str
    content: str


class ChatTemplate:
    """Renders messages as the checkpoint's makers do: Jinja, sandboxed."""

    def __init__(self, source: str, variables: Mapping[str, str], path: Path) -> None:
        """Compile `source`; `variables` holds bos_token and its like. Raises HRMEdgeError."""
        try:
            from jinja2 import TemplateError

            from hrm_edge.template_sandbox import Sandbox, render
        except ModuleNotFoundError:
            raise HRMEdgeError(
                f"{path}: a chat template needs jinja2: pip install 'hrm-edge[chat]'"
            ) from None
        self._variables, self._path, self.dated = variables, path, "strftime_now" in source
        environment, self._rendered = Sandbox(), render
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, ValueError, MemoryError) as error:
            self._refuse(str(error))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        answering: bool = True,
    ) -> str:
        """The conversation as text, ready for an answer unless that is not wanted.

        `tools` are functions that it may call, as OpenAI's API has them. Raises HRMEdgeError if the
        template refuses.
        """
        try:
            fixed = {"tools": tools, "documents": None, "add_generation_prompt": answering}
            variables = {"messages": messages} | fixed | dict(self._variables)
            return self._rendered(self._template, variables)
        except HRMEdgeError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            self._refuse(str(error))

    def _refuse(self, reason: str) -> NoReturn:
        raise HRMEdgeError(f"{self._path}: the chat template refuses the conversation ({reason})")


def chat_template_source(directory: Path) -> tuple[Path, str, dict[str, Any]] | None:
    """(file, template, tokenizer_config.json) of a checkpoint that has a template.

    It lies in chat_template.jinja, or in tokenizer_config.json, where several go by name.
    """
    path, config = directory / TOKENIZER_CONFIG, dict[str, Any]()
    if path.is_file():
        config = read_json_object(path)
    source = config.get("chat_template")
    if (directory / CHAT_TEMPLATE).is_file():
        path = directory / CHAT_TEMPLATE
        source = _text(path)
    if isinstance(source, list):  # several, by name
        named = [t for t in source if isinstance(t, dict)]
        source = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return (path, source, config) if isinstance(source, str) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The template of the checkpoint or bundle in `directory`, if there is one."""
    found = chat_template_source(directory)
    if found is None:
        return None
    path, source, config = found
    tokens = {name: _token(config[name]) for name in config if name.endswith("_token")}
    return ChatTemplate(source, {n: t for n, t in tokens.items() if t is not None}, path)


def takes_system(template: ChatTemplate) -> bool:
    """Whether `template` puts a system message into what the model reads."""
    try:
        told = template.render([{"role": "system", "content": PLAIN[1]}, *_turns(PLAIN[:1])])
    except HRMEdgeError:
        return False
    return PLAIN[1] in told and PLAIN[0] in told


def written_out(template: ChatTemplate) -> dict[str, Any] | None:
    """`template` as a bundle's prompt format: the fixed texts around questions and answers.

    `start` + question + `end` is a lone question's prefix; `turns` holds what stands between a
    question and its `answer`, and between that and the next `question`. Found by rendering
    conversations and proved on others. None where a template does more than put texts in between
    (escapes them, writes the date), `turns` None where only later turns are of that kind.
    """
    try:
        start, end = _around(template.render(_turns(PLAIN[:1])), PLAIN[0])
    except (HRMEdgeError, ValueError):
        return None
    single = {"start": start, "end": end, "conditions": {}, "turns": None}
    if template.dated or not _holds(template, single, ODD[:1]):
        return None
    try:
        asked, rest = _around(template.render(_turns(PLAIN[:3])), PLAIN[1])
        answer = asked.removeprefix(start + PLAIN[0])
        question = rest.removesuffix(PLAIN[2] + end)
    except (HRMEdgeError, ValueError):
        return single
    whole = single | {"turns": {"answer": answer, "question": question}}
    proved = _holds(template, whole, ODD[:3]) and _holds(template, whole, ODD)
    return whole if proved else single


def _holds(template: ChatTemplate, form: Mapping[str, Any], texts: Sequence[str]) -> bool:
    between = form["turns"] or {}
    joined = texts[0]
    for i, text in enumerate(texts[1:]):
        joined += between["question" if i % 2 else "answer"] + text
    try:
        return template.render(_turns(texts)) == form["start"] + joined + form["end"]
    except HRMEdgeError:
        return False


def _around(rendered: str, text: str) -> tuple[str, str]:
    """What stands before and after `text`. Raises ValueError if it is not there exactly once."""
    before, after = rendered.split(text)
    return before, after


def _turns(texts: Sequence[str]) -> list[Message]:
    return [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _token(value: object) -> str | None:
    """A special token's text; tokenizer_config.json also writes it as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None

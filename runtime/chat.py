"""A conversation becomes one prefix: through the checkpoint's chat template, or HRM-Text's prompt.

HRM-Text itself has no chat template and was trained on single questions. A lone user message is
therefore the plain prompt. Anything longer is written out as a transcript ("User: ... Assistant:
...") inside one prompt; the model never saw such a thing, so expect little of later turns.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from hrm_edge.config import read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import format_prompt, parse_conditions

ROLES = ("system", "user", "assistant")


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
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise HRMEdgeError(
                f"{path}: a chat template needs jinja2: pip install 'hrm-edge[chat]'"
            ) from None
        self._variables, self._path = variables, path
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            self._refuse(str(error))

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for an answer. Raises HRMEdgeError if it is refused."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._variables,
            )
        except HRMEdgeError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            self._refuse(str(error))

    def _refuse(self, reason: str) -> NoReturn:
        raise HRMEdgeError(f"{self._path}: the chat template refuses the conversation ({reason})")


def read_chat_template(bundle: Path) -> ChatTemplate | None:
    """The template of chat_template.jinja or tokenizer_config.json, if the bundle has one."""
    path, config = bundle / "tokenizer_config.json", dict[str, Any]()
    if path.is_file():
        config = read_json_object(path)
    source = config.get("chat_template")
    if (bundle / "chat_template.jinja").is_file():
        path = bundle / "chat_template.jinja"
        source = path.read_text(encoding="utf-8")
    if isinstance(source, list):  # several, by name
        source = next((t["template"] for t in source if t.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    tokens = {name: _token(config[name]) for name in config if name.endswith("_token")}
    return ChatTemplate(source, {n: t for n, t in tokens.items() if t is not None}, path)


def format_chat(
    messages: Sequence[Message], condition: str, template: ChatTemplate | None = None
) -> str:
    """The prefix of a conversation. `condition` is for models without a template.

    Raises HRMEdgeError for messages that are not a conversation.
    """
    check_messages(messages)
    if messages[-1]["role"] != "user":
        raise HRMEdgeError("the last message is not the user's, so there is nothing to answer")
    if template is not None:
        return template.render(messages)
    return format_prompt(transcript(messages), parse_conditions(condition))


def transcript(messages: Sequence[Message]) -> str:
    """The text of a conversation for a model without a template; of one question, itself."""
    texts = [m["content"].strip() for m in messages]
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return "\n\n".join(texts)
    labels = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    lines = [labels[m["role"]] + text for m, text in zip(messages, texts, strict=True)]
    return "\n\n".join([*lines, "Assistant:"])


def check_messages(messages: object) -> None:
    """Raise an HRMEdgeError that says why `messages` are no conversation."""
    if not isinstance(messages, list | tuple) or not messages:
        raise HRMEdgeError("messages is empty, expected at least one with role and content")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise HRMEdgeError(f"{where} is not an object with a role and a text as content")
        if message.get("role") not in ROLES:
            role = message.get("role")
            raise HRMEdgeError(f"{where}.role is {role!r}, expected one of {', '.join(ROLES)}")
        if message["role"] == "system" and i > 0:
            raise HRMEdgeError(f"{where} is a system message, which can only be the first")


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _token(value: object) -> str | None:
    """A special token's text; tokenizer_config.json also writes it as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None

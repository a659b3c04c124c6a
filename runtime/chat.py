"""A conversation becomes one prefix: through the checkpoint's chat template, or HRM-Text's prompt.

HRM-Text itself has no chat template and was trained on single questions. A lone user message is
therefore the plain prompt. Anything longer is written out as a transcript ("User: ... Assistant:
...") inside one prompt; the model never saw such a thing, so expect little of later turns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hrm_edge.chat_template import ChatTemplate, Message
from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import format_prompt, parse_conditions

ROLES = ("system", "user", "assistant", "tool")


def format_chat(
    messages: Sequence[Message],
    condition: str,
    template: ChatTemplate | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prefix of a conversation. `condition` is for models without a template.

    `tools` may be called where the template knows tools; what they gave is a message of role tool.
    Raises HRMEdgeError for messages that are not a conversation.
    """
    check_messages(messages)
    if messages[-1]["role"] not in ("user", "tool"):
        raise HRMEdgeError("the last message is not the user's, so there is nothing to answer")
    if template is not None:
        return template.render(messages, tools)
    if any(message["role"] == "tool" for message in messages):
        raise HRMEdgeError("a message of role tool, but the model has no chat template with tools")
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

"""What `hrm-edge chat` does with a line: a turn of the conversation, or a /command.

Knows the messages and the options; neither how a line is read nor how an answer is shown.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hrm_edge.chat_template import Message
from hrm_edge.config import parse_json
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import replacing

from ..chat import check_messages
from ..settings import Options, Settings

RETRY = "retry"


@dataclass
class Conversation:
    """Messages so far and how to answer the next."""

    options: Options
    messages: list[Message] = field(default_factory=list)
    ended: bool = False

    def ask(self, text: str) -> list[Message]:
        """The conversation with the user's new message, which is kept once it is answered."""
        return [*self.messages, {"role": "user", "content": text}]

    def answered(self, asked: list[Message], answer: str) -> None:
        """Keep a turn. An answer without text is kept too: the model said nothing."""
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def command(self, line: str) -> str | None:
        """Carry out "/name argument"; what to say about it. Raises HRMEdgeError."""
        _, _, argument = line.partition(" ")
        return COMMANDS[named(line)][0](self, argument.strip())

    def retry(self) -> str:
        """Take the last turn back and return the user's part of it. Raises HRMEdgeError."""
        if len(self.messages) < 2:
            raise HRMEdgeError("there is no turn to take back")
        asked = self.messages[-2]["content"]
        del self.messages[-2:]
        return asked


def named(line: str) -> str:
    """The command that "/name argument" means; a beginning is enough. Raises HRMEdgeError."""
    name = line[1:].partition(" ")[0]
    known = [other for other in COMMANDS if name and other.startswith(name)]
    if name in COMMANDS:
        return name
    if len(known) != 1:
        raise HRMEdgeError(f"/{name} is no command; see /help")
    return known[0]


def _help(conversation: Conversation, argument: str) -> str:
    lines = [f"/{name:8} {says}" for name, (_, says) in COMMANDS.items()]
    return "\n".join([*lines, "A line that ends with \\ goes on. Ctrl-C stops an answer."])


def _exit(conversation: Conversation, argument: str) -> None:
    conversation.ended = True


def _clear(conversation: Conversation, argument: str) -> str:
    conversation.messages = [m for m in conversation.messages if m["role"] == "system"]
    return "A new conversation."


def _undo(conversation: Conversation, argument: str) -> str:
    return f"Took back: {conversation.retry()}"


def _system(conversation: Conversation, argument: str) -> str:
    turns = [m for m in conversation.messages if m["role"] != "system"]
    first: list[Message] = [{"role": "system", "content": argument}] if argument else []
    conversation.messages = first + turns
    return "The system message is " + (repr(argument) if argument else "empty.")


def _set(conversation: Conversation, argument: str) -> str:
    name, _, value = argument.partition(" ")
    if not name:
        return "\n".join(f"{k} = {v!r}" for k, v in conversation.options.items())
    changed = {**conversation.options, name: _parse(name, value.strip())}
    Settings.of(changed)
    conversation.options = changed  # type: ignore[assignment]
    return f"{name} = {changed[name]!r}"


def _parse(name: str, value: str) -> Any:
    """A value as JSON; what is none, or stands for a text, is text."""
    kind = get_type_hints(Options).get(name)
    if kind is str or (str in get_args(kind) and not value.startswith(("[", "{"))):
        return value or None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value or None


def _save(conversation: Conversation, argument: str) -> str:
    path = Path(argument or "chat.json")
    save_messages(path, conversation.messages)
    return f"Saved {len(conversation.messages)} messages to {path}."


def _load(conversation: Conversation, argument: str) -> str:
    path = Path(argument or "chat.json")
    conversation.messages = read_messages(path)
    return f"Loaded {len(conversation.messages)} messages from {path}."


def save_messages(path: Path, messages: Sequence[Message]) -> None:
    """Write a conversation as JSON, in place of what `path` held. Raises HRMEdgeError."""
    text = json.dumps(messages, ensure_ascii=False, indent=2)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_messages(path: Path) -> list[Message]:
    """What `save_messages` wrote. Raises HRMEdgeError if `path` holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None
    messages = parse_json(text, str(path))
    try:
        check_messages(messages)
    except HRMEdgeError as error:
        raise HRMEdgeError(f"{path}: not a saved conversation ({error})") from None
    return messages


COMMANDS: dict[str, tuple[Callable[[Conversation, str], str | None], str]] = {
    "help": (_help, "this list"),
    "exit": (_exit, "leave (or Ctrl-D)"),
    "clear": (_clear, "begin a new conversation; the system message stays"),
    "undo": (_undo, "take the last turn back"),
    RETRY: (_help, "answer the last message once more"),  # carried out where answers are made
    "system": (_system, "TEXT: set the system message; without TEXT, remove it"),
    "set": (_set, "NAME VALUE: change an option, such as temperature 0.7; alone, show all"),
    "save": (_save, "FILE: save the conversation as JSON"),
    "load": (_load, "FILE: go on with a saved conversation"),
}

"""From a checked JSON body to what is asked of the model."""

import json
from dataclasses import dataclass, replace
from typing import Any

from msgspec import Struct

from ...decoding.tools import Tool
from ...engine import Options
from ...settings import CONSTRAINTS, TABLE
from .errors import RequestError, invalid
from .requests import MAX_CHOICES, checked

Prompt = str | list[int] | list[dict[str, Any]]  # text, tokens, or a conversation
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_OBJECT = {"schema": {"type": "object"}}
OPTIONS = TABLE.keys() - {"json_schema", "speculate"}


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, as its template renders them, and which of them may be called.

    `free`: the answer may also be text. `several`: it may make more than one call.
    """

    shown: list[dict[str, Any]]
    callable: list[Tool]
    free: bool
    several: bool


@dataclass(frozen=True)
class Ask:
    """One request: `n` answers to each prompt."""

    prompts: list[Prompt]
    options: Options
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    chat: bool = False
    echo: bool = False  # score the prompt's own answer instead of making one
    more: int = 0  # tokens to add to what is echoed
    tools: "ToolUse | None" = None

    @property
    def constrained(self) -> bool:
        """Whether a grammar has to be compiled."""
        return self.tools is not None or not self.options.keys().isdisjoint(CONSTRAINTS)

    @property
    def choices(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.n


def completion(body: Any, kind: type[Struct], model: str) -> Ask:
    """A checked body of /v1/completions. Raises RequestError."""
    body = _checked(body, kind, model)
    prompt = body["prompt"]
    prompts = _prompts(prompt)
    most = int(body.get("max_tokens", 256))
    ask = _ask(body, prompts)
    if body.get("best_of", ask.n) != ask.n:
        raise invalid(f"best_of is {body['best_of']}, expected n, {ask.n}", "best_of")
    if not body.get("echo"):
        if most < 1:
            raise invalid("max_tokens is 0, expected 1 or more (0 goes with echo)", "max_tokens")
        return ask
    if most > 1 or "logprobs" not in body:
        raise invalid("echo scores a given answer: it needs logprobs and max_tokens 0 or 1", "echo")
    ask.options.pop("max_tokens", None)
    return replace(ask, echo=True, more=most)


def _prompts(prompt: Any) -> list[Prompt]:
    """One text or one list of tokens, or several of one kind. Raises RequestError."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise invalid("prompt mixes texts and tokens, expected one kind", "prompt")
    if kinds != {int}:
        return prompt
    if not all(0 <= token < 2**31 for token in prompt):
        raise invalid("prompt has a token that is none", "prompt")
    return [prompt]


def chat(body: Any, kind: type[Struct], model: str) -> Ask:
    """A checked body of /v1/chat/completions. Raises RequestError."""
    body = _checked(body, kind, model)
    most = body.pop("max_completion_tokens", None)
    if most is not None:
        body["max_tokens"] = most
    top = body.pop("top_logprobs", 0)
    if top and not body.get("logprobs"):
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.pop("logprobs", False):
        body["logprobs"] = int(top)
    tools = _tools(body)
    ask = _ask(body, [[_message(m) for m in body["messages"]]], chat=True)
    if tools is None:
        return ask
    for name in ("response_format", "regex", "grammar", "logprobs"):
        if body.get(name) not in (None, {"type": "text"}):
            raise invalid(f"{name} does not go with tools that may be called; leave one out", name)
    return replace(ask, tools=tools)


def _tools(body: dict[str, Any]) -> ToolUse | None:
    """What the request says of tools; None where it has none, or none may be called."""
    shown, choice = body.get("tools") or [], body.get("tool_choice", "auto")
    if not shown:
        if choice not in ("none", "auto"):
            raise invalid("tool_choice asks for a call, but there are no tools", "tool_choice")
        return None
    if choice == "none":
        return None
    functions = [tool["function"] for tool in shown]
    tools = [Tool(f["name"], f.get("parameters") or NOTHING) for f in functions]
    if len({tool.name for tool in tools}) < len(tools):
        raise invalid("two tools have the same name", "tools")
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        tools = [tool for tool in tools if tool.name == name]
        if not tools:
            raise invalid(f"tool_choice is {name!r:.80}, which is none of the tools", "tool_choice")
    several = body.get("parallel_tool_calls", True) and not isinstance(choice, dict)
    return ToolUse(shown, tools, choice == "auto", several)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message of the API as the engine takes it; developer is OpenAI's later name for system."""
    role = "system" if message["role"] == "developer" else message["role"]
    calls, content = message.get("tool_calls"), message.get("content")
    if content is None and (role != "assistant" or not calls):
        raise invalid(f"a message of role {role} has no content", "messages")
    found = {"role": role, "content": _text(content or "")}
    if calls:
        if role != "assistant":
            raise invalid(f"a message of role {role} has tool_calls", "messages")
        found["tool_calls"] = [_call(call) for call in calls]
    if role == "tool":
        found |= {key: message[key] for key in ("name", "tool_call_id") if message.get(key)}
    return found


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object, as templates take them."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        shown = function["arguments"][:60]
        raise invalid(f"the arguments of a call are {shown!r}, expected a JSON object", "messages")
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call["id"], "type": "function", "function": named}


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _checked(body: Any, kind: type[Struct], model: str) -> dict[str, Any]:
    """`body` without its nulls. Raises RequestError: 404 for another model, else 400."""
    name = body.get("model") if isinstance(body, dict) else None
    if isinstance(name, str) and name != model:
        message = f"the model {name[:80]!r} is not served here, only {model!r}"
        raise RequestError(404, message, "model_not_found", "model")
    return checked(body, kind)


def _ask(body: dict[str, Any], prompts: list[Prompt], chat: bool = False) -> Ask:
    n = int(body.get("n", 1))
    if len(prompts) * n > MAX_CHOICES:
        raise invalid(
            f"{len(prompts)} prompts times n {n} are more than {MAX_CHOICES} answers", "n"
        )
    stream = body.get("stream", False)
    if "stream_options" in body and not stream:
        raise invalid("stream_options needs stream to be true", "stream_options")
    usage = bool(body.get("stream_options", {}).get("include_usage"))
    return Ask(prompts, _options(body), n, stream, usage, chat)


def _options(body: dict[str, Any]) -> Options:
    """The engine's options, with whole numbers as such."""
    options: Any = {name: body[name] for name in OPTIONS if name in body}
    if "logit_bias" in options:
        options["logit_bias"] = {_token(k): v for k, v in options["logit_bias"].items()}
    shape = body.get("response_format", {"type": "text"})
    if shape["type"] != "text":
        options["json_schema"] = shape.get("json_schema", ANY_OBJECT)["schema"]
    return options


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        shown = key[:60]
        raise invalid(
            f"logit_bias has the key {shown!r}, expected a token id", f"logit_bias.{shown}"
        )
    return int(key)

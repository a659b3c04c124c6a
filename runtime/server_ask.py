"""From a checked JSON body to what is asked of the model."""

import json
from dataclasses import dataclass, replace
from typing import Any

from .engine import Options
from .server_check import Schema, check
from .server_errors import RequestError, invalid
from .server_schema import COMMON, MAX_CHOICES

Prompt = str | list[int] | list[dict[str, str]]  # text, tokens, or a conversation
ANY_OBJECT = {"schema": {"type": "object"}}
OPTIONS = Options.__annotations__.keys() & COMMON.keys()


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

    @property
    def choices(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.n


def parse_json(body: bytes) -> Any:
    """The value in `body`. Raises RequestError(400) if it is not JSON."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"the body is not JSON ({reason[:200]})", code="invalid_json") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def completion(body: Any, schema: Schema, model: str) -> Ask:
    """A checked body of /v1/completions. Raises RequestError."""
    body = _checked(body, schema, model)
    prompt = body["prompt"]
    single = isinstance(prompt, str) or isinstance(prompt[0], int | float)
    prompts = [prompt] if single else prompt
    most = int(body.get("max_tokens", 256))
    ask = _ask(body, [p if isinstance(p, str) else [int(i) for i in p] for p in prompts])
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


def chat(body: Any, schema: Schema, model: str) -> Ask:
    """A checked body of /v1/chat/completions. Raises RequestError."""
    body = _checked(body, schema, model)
    most = body.pop("max_completion_tokens", None)
    if most is not None:
        body["max_tokens"] = most
    top = body.pop("top_logprobs", 0)
    if top and not body.get("logprobs"):
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.pop("logprobs", False):
        body["logprobs"] = int(top)
    return _ask(body, [[_message(m) for m in body["messages"]]], chat=True)


def _message(message: dict[str, Any]) -> dict[str, str]:
    """A message of the API as the engine takes it; developer is OpenAI's later name for system."""
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": _text(message["content"])}


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _checked(body: Any, schema: Schema, model: str) -> dict[str, Any]:
    """`body` without its nulls. Raises RequestError: 404 for another model, else 400."""
    if isinstance(body, dict):
        name = body.get("model")
        if isinstance(name, str) and name != model:
            message = f"the model {name[:80]!r} is not served here, only {model!r}"
            raise RequestError(404, message, "model_not_found", "model")
    try:
        check(body, schema)
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None
    return {name: value for name, value in body.items() if value is not None}


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
    for name, value in options.items():
        if "integer" in COMMON[name].get("type", ()):
            options[name] = int(value)
    if "logit_bias" in options:
        options["logit_bias"] = {int(k): v for k, v in options["logit_bias"].items()}
    shape = body.get("response_format", {"type": "text"})
    if shape["type"] != "text":
        options["json_schema"] = shape.get("json_schema", ANY_OBJECT)["schema"]
    return options

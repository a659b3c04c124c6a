"""What a request may hold, as types that msgspec checks and describes.

The fields that are answer options come from the table in settings.py, ranges and help included;
what stands here is OpenAI's own. The same types are served as OpenAPI, so that the document cannot
promise what is not checked. null, which clients send for what they leave out, is always allowed.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, defstruct

from ...settings import MOST_LOGPROBS, MOST_STOPS, TABLE
from .errors import RequestError, invalid

MOST_TOOLS = 128
MAX_CHOICES = 16  # prompts times n
LARGEST = (1 << 63) - 1  # of a whole number without a bound of its own
# Fields of OpenAI's API that cannot change an answer here: accepted, whatever they hold.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
NUMBERS = tuple(name for name, row in TABLE.items() if row.kind in (int, float))

# Fields, and types of content and roles, of OpenAI's API that no model here can do anything with.
UNSUPPORTED = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
UNSUPPORTED += ("tool_calls", "tool_call_id", "modalities", "audio", "prediction")
UNSUPPORTED += ("image_url", "input_audio", "file", "tool", "function")

Field = tuple[str, Any, Any]  # name, type, default
LINE: Any = Annotated[str, Meta(min_length=1, max_length=10000)]
Flag = bool | None


class Part(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A part of a message's content; only text is supported."""

    text: str


class Message(Struct, forbid_unknown_fields=True):
    """One turn. `name` is ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Meta(min_length=1)]
    name: str | None = None
    refusal: None = None


class CalledFunction(Struct, forbid_unknown_fields=True):
    """What was called; `arguments` is JSON in a string."""

    name: str
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call that an earlier answer made."""

    id: str
    function: CalledFunction
    index: int | None = None


class ToolMessage(Struct, forbid_unknown_fields=True):
    """One turn where the model knows tools: it may have called some, whose results are told."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(min_length=1)] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1, max_length=128)] | None = None
    tool_call_id: str | None = None


class Function(Struct, forbid_unknown_fields=True):
    """What may be called; `strict` is always so, whatever it says."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag = None


class Tool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A tool; functions are the only kind."""

    function: Function


class Named(Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class NamedTool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The tool that is to be called."""

    function: Named


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`include_usage`: one more event with the token counts."""

    include_usage: Flag = None
    include_obfuscation: Flag = None


class Plain(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """An answer that is bound to nothing."""


class JsonObject(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class Schema(Struct, forbid_unknown_fields=True):
    """A JSON schema that llguidance knows; `strict` is always so, whatever it says."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, Any]
    description: str | None = None
    strict: Flag = None


class JsonSchema(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON of that schema."""

    json_schema: Schema


def _bound(kind: Any, **bounds: Any) -> Any:
    """`kind` within `bounds`; of type Any, since checkers know no `|` of annotated types."""
    return Annotated[kind, Meta(**bounds)]


def _number(name: str) -> Field:
    """The answer option `name`, with the range and the help of its table."""
    row, bounds = TABLE[name], dict[str, Any]()
    option = row.option
    if option.low is not None:
        bounds["gt" if option.above else "ge"] = row.kind(option.low)
    if option.high is not None:
        bounds["lt" if option.below else "le"] = row.kind(option.high)
    elif row.kind is int:
        bounds["le"] = LARGEST
    default = "" if row.default is None else f" Default: {row.default}."
    says = f"{option.help} {option.expected}.{default}"
    return name, _bound(row.kind, description=says, **bounds) | None, None


def _common(model: str, cycles: tuple[int, int]) -> list[Field]:
    stop, (h, most) = _bound(str, min_length=1), cycles
    passes, plan = _bound(int, ge=1, le=most), TABLE["l_cycles"].option.help
    bias = TABLE["logit_bias"].option
    biases = dict[str, _bound(float, ge=bias.low, le=bias.high)]  # type: ignore[misc]
    return [
        ("model", Literal[model, None], None),  # type: ignore[valid-type]
        *map(_number, NUMBERS),
        ("n", _bound(int, ge=1, le=MAX_CHOICES) | None, None),
        ("condition", str | None, None),
        ("logit_bias", _bound(biases, max_length=1000) | None, None),
        ("stop", stop | _bound(list[stop], max_length=MOST_STOPS) | None, None),
        (
            "l_cycles",
            _bound(list[passes], min_length=h, max_length=h, description=plan) | None,
            None,
        ),
        ("regex", LINE | None, None),
        ("grammar", LINE | None, None),
        ("response_format", Plain | JsonObject | JsonSchema | None, None),
        ("stream", Flag, None),
        ("stream_options", StreamOptions | None, None),
        *((name, Any, None) for name in IGNORED),
    ]


def completion_type(model: str, cycles: tuple[int, int]) -> type[Struct]:
    """The body of /v1/completions to a server of `model`, whose H and L cycles are `cycles`.

    A text is put in the model's prompt format, token ids are taken as they are; several of either
    are several prompts.
    """
    tokens = _bound(list[_bound(int, ge=0, le=2**31 - 1)], min_length=1)
    own = [
        ("prompt", str | _bound(list[int | str | tokens], min_length=1)),
        ("max_tokens", _bound(int, ge=0, le=LARGEST) | None, None),
        ("echo", Flag, None),
        ("best_of", _bound(int, ge=1, le=MAX_CHOICES) | None, None),
        ("suffix", None, None),
    ]
    return _body("completion", own, _common(model, cycles))


def chat_type(model: str, cycles: tuple[int, int], tools: bool = False) -> type[Struct]:
    """The body of /v1/chat/completions to a server of `model`; see `completion_type`.

    `tools`: whether the model can call any.
    """
    calling: list[Field] = [
        ("tools", _bound(list[Any], max_length=0) | None, None),
        ("tool_choice", Literal["none", "auto", None], None),
    ]
    if tools:
        calling = [
            ("tools", _bound(list[Tool], max_length=MOST_TOOLS) | None, None),
            ("tool_choice", Literal["none", "auto", "required"] | NamedTool | None, None),
            ("parallel_tool_calls", Flag, None),
        ]
    kind = ToolMessage if tools else Message
    own = [
        ("messages", _bound(list[kind], min_length=1, max_length=1000)),
        ("logprobs", Flag, None),
        ("top_logprobs", _bound(int, ge=0, le=MOST_LOGPROBS) | None, None),
        ("max_completion_tokens", *_number("max_tokens")[1:]),
        *calling,
    ]
    return _body("chat", own, _common(model, cycles))


def _body(name: str, own: list[Any], common: list[Field]) -> type[Struct]:
    taken = {field[0] for field in own}
    rest = [field for field in common if field[0] not in taken]
    return defstruct(name, [*own, *rest], forbid_unknown_fields=True, kw_only=True)


def parse_json(body: bytes) -> Any:
    """The value in `body`. Raises RequestError(400) if it is not JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error).partition(" - at ")[0]
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        raise invalid(f"the body is not JSON ({reason[:200]})", code="invalid_json") from None


def checked(body: Any, kind: type[Struct]) -> dict[str, Any]:
    """`body` without its nulls, once it is a `kind`. Raises RequestError(400) naming the field."""
    try:
        found = msgspec.convert(_whole_numbers(body), kind)
        return {k: v for k, v in msgspec.to_builtins(found).items() if v is not None}
    except msgspec.ValidationError as error:
        raise _refusal(str(error), body, kind) from None
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None


def _whole_numbers(value: Any) -> Any:
    """2.0 as 2: to JSON Schema, and to some clients, that is an integer."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    return value


def _refusal(message: str, body: Any, kind: type[Struct]) -> RequestError:
    """msgspec's complaint with the field's name in front and the value at fault."""
    complaint, _, path = message.partition(" - at ")
    at = path.removeprefix("key in ").strip("`").removeprefix("$").lstrip(".").removesuffix("[...]")
    missing = re.fullmatch(r"Object missing required field `(.*)`", complaint)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", complaint, re.DOTALL)
    inner = missing or unknown
    place = ".".join(part for part in (at, inner[1] if inner else "") if part)[:80]
    for name in (re.split(r"\W", place)[0], inner[1] if unknown and inner else ""):
        if name in UNSUPPORTED:
            told = f"{name} is not supported by this server"
            return invalid(told, name, "unsupported_parameter")
    if (value := _value(body, at)) in UNSUPPORTED:
        told = f"{place} is {value!r}, which is not supported by this server: text only"
        return invalid(told, place, "unsupported_value")
    if missing:
        return invalid(f"{place} is missing", place, "missing_required_parameter")
    if unknown:
        known = "" if at else f"; known are {', '.join(kind.__struct_fields__)}"
        return invalid(f"unknown field {place!r}{known}", place, "unknown_parameter")
    shown = _shown(body, at)
    expected = complaint[:1].lower() + complaint[1:]
    return invalid(f"{place or 'the body'}{shown}: {expected}", place or None)


def _shown(body: Any, at: str) -> str:
    """ " is 3" for the short value at that place of the body."""
    value = _value(body, at)
    short = isinstance(value, str | int | float | None) and len(repr(value)) <= 60
    return f" is {msgspec.json.encode(value).decode()}" if short else ""


def _value(body: Any, at: str) -> Any:
    """What stands at that place of the body; a list where there is nothing."""
    for step in re.findall(r"\w+", at):
        try:
            body = body[int(step)] if isinstance(body, list) else body[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return []
    return body

"""What a request may hold, as JSON Schemas: checked by server_check, served by server_openapi."""

from typing import Any

from hrm_edge.prompt import CONDITIONS

from .server_check import Schema
from .settings import MOST_LOGPROBS, MOST_STOPS

MAX_CHOICES = 16  # prompts times n
_NAME = f"({'|'.join(CONDITIONS)})"
# Fields of OpenAI's API that cannot change an answer here: accepted, whatever they hold.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def _optional(schema: Schema) -> Schema:
    """null, which clients send for what they leave out, is allowed too."""
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    found = schema | {"type": [schema["type"], "null"]}
    return found | {"enum": [*schema["enum"], None]} if "enum" in schema else found


def _number(low: float, high: float, says: str, default: float | None = None) -> Schema:
    found = {"type": "number", "minimum": low, "maximum": high, "description": says}
    return _optional(found | ({} if default is None else {"default": default}))


def _positive(high: float, default: float, says: str) -> Schema:
    found = _number(0, high, says, default)
    found["exclusiveMinimum"] = found.pop("minimum")
    return found


def _integer(low: int, high: int, says: str, default: int | None = None) -> Schema:
    found = _number(low, high, says, default)
    return found | {"type": ["integer", "null"]}


def _constraint(says: str) -> Schema:
    return _optional({"type": "string", "minLength": 1, "maxLength": 10000, "description": says})


def _object(properties: Schema, required: list[str]) -> Schema:
    found = {"type": "object", "properties": properties, "required": required}
    return found | {"additionalProperties": False}


def _flag(says: str) -> Schema:
    return _optional({"type": "boolean", "default": False, "description": says})


def _never(says: str) -> Schema:
    return {"type": "null", "description": f"not supported: {says}"}


STREAM = {
    "stream": _flag("Send the answer as server-sent events while it grows."),
    "stream_options": _optional(
        {
            "type": "object",
            "properties": {
                "include_usage": _flag("One more event with the token counts."),
                "include_obfuscation": _flag("Accepted and ignored."),
            },
            "additionalProperties": False,
        }
    ),
}
JSON_SCHEMA = _object(
    {
        "name": {"type": "string", "minLength": 1, "maxLength": 64},
        "schema": {"type": "object", "description": "A JSON schema that llguidance knows."},
        "description": _optional({"type": "string", "description": "Accepted and ignored."}),
        "strict": _optional({"type": "boolean", "description": "Always so, whatever it says."}),
    },
    ["name", "schema"],
)
TOKENS = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
COMMON = {
    "max_tokens": _integer(
        1, 2**31 - 1, "Most tokens of an answer; the context may hold fewer.", 256
    ),
    "temperature": _number(0, 2, "0 is greedy.", 0),
    "top_p": _positive(1, 1, "Keep the likeliest tokens that make up this share; 1 is off."),
    "n": _integer(1, MAX_CHOICES, "Answers to each prompt; with a seed, seed + i for the i-th.", 1),
    "seed": _integer(0, 2**63 - 1, "The same seed gives the same sample."),
    "top_k": _integer(0, 2**31 - 1, "Extension. Keep this many likeliest tokens; 0 is off.", 0),
    "min_p": _optional(
        {
            "type": "number",
            "minimum": 0,
            "maximum": 0.999999,
            "default": 0,
            "description": "Extension. Drop tokens below this share of the likeliest; 0 is off.",
        }
    ),
    "repetition_penalty": _positive(10, 1, "Extension. Over prompt and answer; 1 is off."),
    "presence_penalty": _number(-2, 2, "Subtracted once from tokens of the answer.", 0),
    "frequency_penalty": _number(-2, 2, "Subtracted for each time a token occurred.", 0),
    "logit_bias": _optional(
        {
            "type": "object",
            "maxProperties": 1000,
            "propertyNames": {"type": "string", "pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "description": "Token ids, and what to add to their logits.",
        }
    ),
    "stop": _optional(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "maxItems": MOST_STOPS,
                    "items": {"type": "string", "minLength": 1},
                },
            ],
            "description": "Strings that end an answer and are no part of it.",
        }
    ),
    "logprobs": _integer(0, MOST_LOGPROBS, "Log-probabilities, and of how many likely tokens."),
    "regex": _constraint("Extension. The answer matches this regular expression."),
    "grammar": _constraint("Extension. The answer is of this grammar, in Lark."),
    "response_format": _optional(
        {
            "anyOf": [
                _object({"type": {"type": "string", "enum": ["text", "json_object"]}}, ["type"]),
                _object(
                    {
                        "type": {"type": "string", "enum": ["json_schema"]},
                        "json_schema": JSON_SCHEMA,
                    },
                    ["type", "json_schema"],
                ),
            ],
            "description": "text, or an answer that is JSON, or JSON of a schema.",
        }
    ),
    "condition": _optional(
        {
            "type": "string",
            "pattern": f"^({_NAME}(,{_NAME}){{0,7}})?$",
            "default": "direct",
            "description": f"{', '.join(CONDITIONS)}, or several joined by commas",
        }
    ),
}
PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": TOKENS},
        {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string"}},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_CHOICES,
            "items": {"type": "array", "minItems": 1, "items": TOKENS},
        },
    ],
    "description": "A text, which is put in the model's prompt format, or token ids as they are.",
}
CONTENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": CONTENT,
        "name": _optional({"type": "string", "description": "Accepted and ignored."}),
        "refusal": _never("refusals"),
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}


def completion_schema(model: str) -> Schema:
    """The body of /v1/completions."""
    fields = {
        "prompt": PROMPT,
        "max_tokens": COMMON["max_tokens"] | {"minimum": 0},
        "echo": _flag("Score the answer behind <|im_end|>; needs logprobs, max_tokens 0 or 1."),
        "best_of": _integer(1, MAX_CHOICES, "n, if given."),
        "suffix": _never("text after the answer"),
    }
    return _body(model, fields, ["prompt"])


def chat_schema(model: str) -> Schema:
    """The body of /v1/chat/completions."""
    fields = {
        "messages": {"type": "array", "minItems": 1, "maxItems": 1000, "items": MESSAGE},
        "logprobs": _flag("Report each token's log-probability."),
        "top_logprobs": _integer(0, MOST_LOGPROBS, "And those of so many likely tokens."),
        "max_completion_tokens": COMMON["max_tokens"],
        "tools": _optional({"type": "array", "maxItems": 0, "description": "Not supported."}),
        "tool_choice": _optional({"type": "string", "enum": ["none", "auto"]}),
    }
    return _body(model, fields, ["messages"])


def _body(model: str, fields: Schema, required: list[str]) -> Schema:
    ignored: dict[str, Any] = {name: {"description": "Accepted and ignored."} for name in IGNORED}
    name = _optional({"type": "string", "enum": [model]})
    return {
        "type": "object",
        "properties": {"model": name} | COMMON | STREAM | ignored | fields,
        "required": required,
        "additionalProperties": False,
    }

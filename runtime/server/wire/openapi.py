"""The server's OpenAPI 3.1 document, around the types that requests are checked against."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"

ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
REFUSALS = {
    "400": "A field is missing, unknown or out of range, or the prompt does not fit",
    "401": "No key, or a wrong one",
    "404": "Another model than the one served",
    "405": "Another method",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "The body is not application/json",
    "421": "Another host name than this server's",
    "429": "The queue is full",
    "500": "The server failed",
    "501": "Answers cannot be constrained here, since llguidance is not installed",
    "503": "The server is shutting down",
}
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def openapi(bodies: Sequence[type[msgspec.Struct]], name: str) -> dict[str, Any]:
    """The document of a server whose bodies are of these types and whose model is `name`."""
    _, schemas = msgspec.json.schema_components(bodies, ref_template=REF)
    paths = {
        "/v1/completions": _post("Continue or answer a prompt", "completion", "text_completion"),
        "/v1/chat/completions": _post("Answer a conversation", "chat", "chat.completion"),
        "/v1/models": _get("The model that is served", _json(_models())),
        "/health": _get("Whether requests are taken", _json({"type": "object"})),
        "/metrics": _get("Prometheus metrics", {"text/plain": {"schema": {"type": "string"}}}),
        "/openapi.json": _get("This document", _json({"type": "object"})),
    }
    for path in ("/health", "/openapi.json"):
        paths[path]["get"]["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {"title": f"hrm-edge: {name}", "version": _version()},
        "paths": paths,
        "components": {
            "schemas": schemas | {"error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _version() -> str:
    try:
        return version("hrm-edge")
    except PackageNotFoundError:
        return "0"


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _refusals(statuses: dict[str, str]) -> dict[str, Any]:
    content = _json({"$ref": "#/components/schemas/error"})
    return {status: {"description": says, "content": content} for status, says in statuses.items()}


def _get(says: str, content: dict[str, Any]) -> dict[str, Any]:
    refused = _refusals({k: v for k, v in REFUSALS.items() if k in ("401", "405", "421", "500")})
    refused["503"] = {"description": REFUSALS["503"]}
    return {
        "get": {
            "summary": says,
            "responses": {"200": {"description": says, "content": content}} | refused,
        }
    }


def _post(says: str, body: str, kind: str) -> dict[str, Any]:
    # whether a stream's schema is that of the text or of an event, tools do not agree
    says_all = "Each event's data is a chunk as JSON, the last one's is [DONE]."
    answer = _json(_answer(kind)) | {"text/event-stream": {"schema": {"description": says_all}}}
    ok = {"200": {"description": "The answer, or its events", "content": answer}}
    schema = {"$ref": f"#/components/schemas/{body}"}
    return {
        "post": {
            "summary": says,
            "requestBody": {"required": True, "content": _json(schema)},
            "responses": ok | _refusals(REFUSALS),
        }
    }


def _answer(kind: str) -> Schema:
    choice = {
        "type": "object",
        "properties": {
            "index": {"type": "integer"},
            "finish_reason": {"enum": ["stop", "length"]},
        },
        "required": ["index", "finish_reason"],
    }
    usage = {"type": "object", "properties": {n: {"type": "integer"} for n in USAGE}}
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "object": {"enum": [kind]},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "minItems": 1, "items": choice},
            "usage": usage | {"required": list(USAGE)},
        },
        "required": ["id", "object", "created", "model", "choices", "usage"],
    }


def _models() -> Schema:
    card = {"type": "object", "required": ["id", "object", "created", "owned_by"]}
    return {
        "type": "object",
        "properties": {"data": {"type": "array", "items": card}},
        "required": ["object", "data"],
    }

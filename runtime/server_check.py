"""Checks a JSON value against the part of JSON Schema that the server's own schemas use.

The same schemas are served as OpenAPI, so the document cannot promise what is not checked.
"""

import json
import math
import re
from typing import Any

from .server_errors import RequestError, invalid

Schema = dict[str, Any]
KEYWORDS = {  # what `check` understands; the others below describe and bind nothing
    "type", "enum", "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern",
    "minItems", "maxItems", "items", "properties", "required", "additionalProperties", "anyOf",
    "propertyNames", "maxProperties", "description", "title", "default", "examples",
}  # fmt: skip
NUMBERS = {
    "minimum": (lambda value, bound: value >= bound, "at least {}"),
    "maximum": (lambda value, bound: value <= bound, "at most {}"),
    "exclusiveMinimum": (lambda value, bound: value > bound, "more than {}"),
}


def check(value: Any, schema: Schema, at: str = "") -> None:
    """Raise RequestError(400) naming the first place where `value` breaks `schema`."""
    if "enum" in schema and not any(_same(value, allowed) for allowed in schema["enum"]):
        known = ", ".join(json.dumps(allowed) for allowed in schema["enum"])
        raise _wrong(value, f"one of {known}", at)
    if "anyOf" in schema:
        _any_of(value, schema["anyOf"], at)
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, name) for name in types):
            raise _wrong(value, " or ".join(types), at)
    if isinstance(value, str):
        _string(value, schema, at)
    elif isinstance(value, list):
        _array(value, schema, at)
    elif isinstance(value, dict):
        _object(value, schema, at)
    elif _is(value, "number"):
        for keyword, (holds, words) in NUMBERS.items():
            if keyword in schema and not holds(value, schema[keyword]):
                raise _wrong(value, words.format(schema[keyword]), at)


def _is(value: Any, name: str) -> bool:
    """JSON Schema's types: a bool is no number, 2.0 is an integer."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "integer":
        return whole or (isinstance(value, float) and value.is_integer())
    if name == "number":
        return whole or (isinstance(value, float) and math.isfinite(value))
    kinds = {"string": str, "array": list, "object": dict, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[name])


def _same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and value == allowed


def _any_of(value: Any, schemas: list[Schema], at: str) -> None:
    """The most telling complaint is that of the branch that fits the value's type."""
    complaints = []
    for schema in schemas:
        try:
            return check(value, schema, at)
        except RequestError as error:
            fits = any(_is(value, name) for name in (schema.get("type"),) if name)
            complaints.append((fits, error))
    telling = [error for fits, error in complaints if fits]
    if telling:
        raise telling[-1]
    raise _wrong(value, " or ".join(dict.fromkeys(s.get("type", "?") for s in schemas)), at)


def _string(value: str, schema: Schema, at: str) -> None:
    if not _is_text(value):
        raise _wrong(value, "Unicode text without lone surrogates", at)
    _size(len(value), schema, "Length", "characters", at)
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        raise _wrong(value, schema.get("description", f"a match of {schema['pattern']}"), at)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _array(value: list[Any], schema: Schema, at: str) -> None:
    _size(len(value), schema, "Items", "items", at)
    for index, item in enumerate(value):
        check(item, schema.get("items", {}), f"{at}[{index}]")


def _object(value: dict[str, Any], schema: Schema, at: str) -> None:
    _size(len(value), schema, "Properties", "fields", at)
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            place = f"{at}.{name}" if at else name
            raise invalid(f"{place} is missing", place, "missing_required_parameter")
    for name, item in value.items():
        place = f"{at}.{name}" if at else name
        check(name, schema.get("propertyNames", {}), place)
        if name in properties:
            check(item, properties[name], place)
        elif rest is False:
            known = ", ".join(properties)
            raise invalid(
                f"unknown field {place[:80]!r}; known are {known}", place[:80], "unknown_parameter"
            )
        else:
            check(item, rest, place)


def _size(size: int, schema: Schema, keyword: str, unit: str, at: str) -> None:
    low, high = schema.get(f"min{keyword}", 0), schema.get(f"max{keyword}", math.inf)
    if not low <= size <= high:
        bound = f"at least {low}" if size < low else f"at most {high}"
        raise invalid(f"{at or 'the body'} has {size} {unit}, expected {bound}", at or None)


def _wrong(value: Any, expected: str, at: str) -> RequestError:
    shown = json.dumps(value) if isinstance(value, str | int | float | None) else ""
    shown = shown if shown and len(shown) <= 60 else _kind(value)
    return invalid(f"{at or 'the body'} is {shown}, expected {expected}", at or None)


def _kind(value: Any) -> str:
    names = {str: "a long string", list: "an array", dict: "an object"}
    return names.get(type(value), "a long number")

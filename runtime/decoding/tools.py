"""Calls of tools: a grammar that holds answers to them, and a reader that finds them in a text."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hrm_edge.errors import HRMEdgeError
from hrm_edge.tool_format import ToolFormat

from .guided import JSON_STYLE
from .stopping import StopText

# What a schema may say where calls are not JSON; the rest of JSON Schema is llguidance's.
KNOWN = {"type", "description", "title", "default", "enum", "properties", "required", "items"}
KNOWN |= {"additionalProperties"}
BARE_KEY = re.compile(r"[\w$.-]+")
ANYTHING = r"/(.|\n)*/"
INTEGER = "-?(0|[1-9][0-9]*)"
SIMPLE = {
    "integer": f"/{INTEGER}/",
    "number": f"/{INTEGER}(\\.[0-9]+)?([eE][-+]?[0-9]+)?/",
    "boolean": '"true" | "false"',
    "null": '"null"',
}


@dataclass(frozen=True)
class Tool:
    """A function that an answer may call, `parameters` being a JSON schema of an object."""

    name: str
    parameters: Mapping[str, Any]


def call_grammar(
    form: ToolFormat,
    tools: Sequence[Tool],
    special: Mapping[str, int],
    free: bool,
    several: bool,
) -> str:
    """Lark, as llguidance has it, of an answer that calls `tools`.

    `special` are the tokenizer's special tokens, which no text matches. `free`: text may come
    before, or instead. `several`: more than one call, where the template knows that. Raises
    HRMEdgeError for a schema that cannot be held.
    """
    for tool in tools:
        if tool.parameters.get("type", "object") != "object":
            raise HRMEdgeError(f"{tool.name}.parameters: expected the schema of an object", "tools")
    try:
        return _call_grammar(_Rules(form, special), tools, free, several)
    except RecursionError:
        raise HRMEdgeError("a tool's parameters are nested too deeply", "tools") from None


def _call_grammar(rules: "_Rules", tools: Sequence[Tool], free: bool, several: bool) -> str:
    calls = " | ".join(rules.call(tool) for tool in tools)
    more = ""
    if several and rules.form.between is not None:
        more = f" ({rules.text(rules.form.between)} call)*"
    start = f"call{more}"
    if free:
        first = " | ".join(rules.first_call(tool) for tool in tools)
        start = f"first{more} | TEXT"
        rules.lines.append(f"first: {first}")
    return "\n".join([f"start: {start}", f"call: {calls}", *rules.lines, f"TEXT: {ANYTHING}"])


class _Rules:
    """Rules of a grammar, by and by."""

    def __init__(self, form: ToolFormat, special: Mapping[str, int]) -> None:
        self.lines: list[str] = []
        self.form, self._special = form, special
        names = sorted(special, key=len, reverse=True)
        self._split = re.compile("|".join(f"({re.escape(name)})" for name in names) or "(?!)")
        self._marker = form.begin.strip().splitlines()[0]  # where a call has begun

    def text(self, text: str) -> str:
        """`text`, special tokens in it as such."""
        parts, at = [], 0
        for found in self._split.finditer(text):
            parts += [json.dumps(text[at : found.start()], ensure_ascii=False)]
            parts += [f"<[{self._special[found[0]]}]>"]
            at = found.end()
        parts.append(json.dumps(text[at:], ensure_ascii=False))
        return " ".join(part for part in parts if part != '""') or '""'

    def call(self, tool: Tool) -> str:
        """A rule for a call of `tool`."""
        return self._add("call", f"{self.text(self.form.begin)} {self._named(tool)}")

    def first_call(self, tool: Tool) -> str:
        """A rule for text, if there is some, and a call of `tool` that ends it."""
        rest = self.form.begin.lstrip().removeprefix(self._marker)
        return self._add(
            "first", f"{self._until(self._marker)} {self.text(rest)} {self._named(tool)}"
        )

    def _named(self, tool: Tool) -> str:
        """What comes after `begin`."""
        if self.form.quote is None:
            schema = {"type": "object", **tool.parameters, "x-guidance": JSON_STYLE}
            arguments = f"%json {json.dumps(schema)}"
        else:
            arguments = self._value(tool.parameters, f"{tool.name}.parameters")
        named = self.text(tool.name + self.form.middle)
        return f"{named} {self._add('args', arguments)} {self.text(self.form.end)}"

    def _until(self, marker: str) -> str:
        """Any text up to `marker`, and that. A special token ends every text by itself."""
        if self._split.match(marker):
            return f"TEXT {self.text(marker)}"
        return self._add("until", f"TEXT {self.text(marker)}", "[lazy]")

    def _add(self, kind: str, body: str, attribute: str = "") -> str:
        name = f"{kind}_{len(self.lines)}"
        self.lines.append(f"{name}{attribute}: {body}")
        return name

    def _value(self, schema: Any, where: str) -> str:
        """A rule for a value of `schema` with bare keys and quoted strings."""
        if not isinstance(schema, Mapping):
            raise HRMEdgeError(f"{where} is no JSON schema", "tools")
        if odd := sorted(schema.keys() - KNOWN):
            raise HRMEdgeError(
                f"{where}: {odd[0]!r} cannot be held to by this model's calls", "tools"
            )
        if "enum" in schema:
            if not isinstance(schema["enum"], list) or not schema["enum"]:
                raise HRMEdgeError(f"{where}: enum is no list of values", "tools")
            return " | ".join(self._literal(value, where) for value in schema["enum"])
        kind = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kind, list):
            return " | ".join(f"({self._value(dict(schema) | {'type': k}, where)})" for k in kind)
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            item = self._add("item", self._value(schema.get("items", {}), f"{where}.items"))
            return f'"[" ({item} ("," {item})*)? "]"'
        if kind == "string":
            quote = self.form.quote or ""
            return f"{self.text(quote)} {self._until(quote)}"
        if isinstance(kind, str) and kind in SIMPLE:
            return SIMPLE[kind]
        raise HRMEdgeError(f"{where}: a type is missing or unknown ({kind!r})", "tools")

    def _object(self, schema: Mapping[str, Any], where: str) -> str:
        """Properties in their order; those that are not required may be left out."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise HRMEdgeError(f"{where}: properties or required are of a wrong kind", "tools")
        rests = {True: '""', False: '""'}  # by whether nothing stands before them
        for name, inner in reversed(list(properties.items())):
            if not BARE_KEY.fullmatch(name):
                raise HRMEdgeError(f"{where}: {name!r:.60} cannot be a bare key", "tools")
            value = self._add("value", self._value(inner, f"{where}.{name}"))
            told = {}
            for first in (True, False):
                comma = "" if first else '"," '
                body = f"{comma}{self.text(name + ':')} {value} {rests[False]}"
                if name not in required:
                    body += f" | {rests[first]}"
                told[first] = self._add("members", body)
            rests = told
        return f'"{{" {rests[True]} "}}"'

    def _literal(self, value: Any, where: str) -> str:
        if isinstance(value, str):
            quote = self.form.quote or ""
            return self.text(f"{quote}{value}{quote}")
        if value is None or isinstance(value, bool | int | float):
            return json.dumps(json.dumps(value))
        raise HRMEdgeError(f"{where}: enum has {value!r:.40}, expected simple values", "tools")


@dataclass(frozen=True)
class Call:
    """A call that an answer makes; `arguments` are JSON."""

    name: str
    arguments: str


class CallReader:
    """Finds calls in a growing text. What may yet become one is held back."""

    def __init__(self, form: ToolFormat) -> None:
        self._form, self._marker = form, form.begin.strip()
        self._before = StopText([self._marker])
        self._call: str | None = None  # the text of calls, from the first one on
        self.calls = 0

    def push(self, text: str) -> Iterator[str | Call]:
        """Text that is none of a call, and calls that are whole."""
        if self._call is None:
            held = self._before.held
            shown, found = self._before.push(text)
            if shown:
                yield shown
            if not found:
                return
            self._call = (held + text)[len(shown) :]
        else:
            self._call += text
        while (found := self._whole()) is not None:
            self.calls += 1
            yield found

    def flush(self) -> str:
        """What is left at the end of an answer and was no call after all."""
        left = self._before.flush() if self._call is None else self._call
        self._call = ""
        return left

    def _whole(self) -> Call | None:
        """The call at the beginning of what is held, which is then taken out of it."""
        form, text = self._form, self._call or ""
        at = text.find(self._marker)
        if at < 0:
            return None
        start = at + len(self._marker) + len(form.begin) - len(form.begin.rstrip())
        named = re.compile(r"[\w.-]+").match(text, start)
        if named is None or not text.startswith(form.middle, named.end()):
            return None
        try:
            value, end = _read(text, named.end() + len(form.middle), form.quote)
        except (ValueError, IndexError, RecursionError):
            return None
        closing = form.end.rstrip()
        if not text.startswith(closing, end):
            return None
        self._call = text[end + len(closing) :]
        return Call(named[0], json.dumps(value, ensure_ascii=False))


def _read(text: str, at: int, quote: str | None) -> tuple[Any, int]:
    """The value that begins at `at`, and where it ends. Raises ValueError or IndexError."""
    if quote is None:
        return json.JSONDecoder().raw_decode(text, at)
    if text.startswith(quote, at):
        end = text.index(quote, at + len(quote))
        return text[at + len(quote) : end], end + len(quote)
    if text[at] not in "{[":
        return json.JSONDecoder().raw_decode(text, at)
    closing, found = {"{": "}", "[": "]"}[text[at]], list[tuple[str, Any]]()
    at += 1
    while text[at] != closing:
        key = ""
        if closing == "}":
            key, at = text[at : text.index(":", at)], text.index(":", at) + 1
        value, at = _read(text, at, quote)
        found.append((key, value))
        at += text[at] == ","
    return (dict(found) if closing == "}" else [value for _, value in found]), at + 1

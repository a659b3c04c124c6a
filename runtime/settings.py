"""What a caller may ask of an answer, and the one-line refusal of what cannot be.

Knows nothing of sessions; ranges that depend on a model are checked where the model is known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import parse_conditions

MOST_LOGPROBS = 20
MOST_STOPS = 16


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; see Settings for meanings and defaults."""

    condition: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    logprobs: int | None
    speculate: bool
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None


@dataclass(frozen=True)
class Settings:
    """How to answer. Raises HRMEdgeError for a value out of range."""

    condition: str = "direct"  # of direct, cot, noisy, synth; several joined by commas
    max_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0  # over prompt and answer, as in transformers; 1 is off
    presence_penalty: float = 0.0  # over the answer, subtracted once per token seen; OpenAI's
    frequency_penalty: float = 0.0  # over the answer, subtracted per occurrence; OpenAI's
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    stop: str | Sequence[str] = ()  # strings that end an answer and are no part of it
    logprobs: int | None = None  # how many likeliest tokens to report beside the drawn one's
    speculate: bool = True  # draft tokens where measured to pay; never changes what is drawn
    json_schema: str | Mapping[str, Any] | None = None  # of these three at most one
    regex: str | None = None
    grammar: str | None = None  # Lark, as llguidance reads it

    def __post_init__(self) -> None:
        in_range("condition", self.condition, isinstance(self.condition, str), "a string")
        parse_conditions(self.condition)
        for name, (accepts, expected) in RULES.items():
            value = getattr(self, name)
            in_range(name, value, accepts(value), expected)
        given = [n for n in ("json_schema", "regex", "grammar") if getattr(self, n) is not None]
        if len(given) > 1:
            raise HRMEdgeError(f"{given[0]} and {given[1]} are both given, expected one constraint")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings from keyword arguments. Raises HRMEdgeError for an unknown name."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise HRMEdgeError(f"unknown option {name!r}; known are {', '.join(known)}")
        return cls(**options)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple, a lone one too."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def in_range(name: str, value: object, ok: bool, expected: str) -> None:
    """Raise the HRMEdgeError for a `value` that is not `ok`."""
    if not ok:
        shown = value if isinstance(value, int | float) else repr(value)
        raise HRMEdgeError(f"{name} is {shown}, expected {expected}")


Rule = tuple[Callable[[Any], bool], str]


def _number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_stop(value: Any) -> bool:
    found = (value,) if isinstance(value, str) else value
    listed = isinstance(found, list | tuple) and len(found) <= MOST_STOPS
    return listed and all(isinstance(s, str) and s for s in found)


def _is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_whole(k) and _number(v) for k, v in value.items())


def _text(value: object) -> bool:
    return value is None or isinstance(value, str)


RULES: dict[str, Rule] = {
    "max_tokens": (lambda v: _whole(v) and v >= 1, "1 or more"),
    "temperature": (lambda v: _number(v) and v >= 0, "0 (greedy) or more"),
    "top_k": (lambda v: _whole(v) and v >= 0, "0 (off) or more"),
    "top_p": (lambda v: _number(v) and 0 < v <= 1, "more than 0, at most 1 (off)"),
    "min_p": (lambda v: _number(v) and 0 <= v < 1, "0 (off) to less than 1"),
    "seed": (lambda v: v is None or (_whole(v) and v >= 0), "0 or more"),
    "repetition_penalty": (lambda v: _number(v) and 0 < v <= 10, "more than 0, at most 10; 1: off"),
    "presence_penalty": (lambda v: _number(v) and -2 <= v <= 2, "-2 to 2 (0: off)"),
    "frequency_penalty": (lambda v: _number(v) and -2 <= v <= 2, "-2 to 2 (0: off)"),
    "logit_bias": (_is_bias, "token ids with finite numbers"),
    "stop": (_is_stop, f"a string that is not empty, or at most {MOST_STOPS} of them"),
    "logprobs": (
        lambda v: v is None or (_whole(v) and 0 <= v <= MOST_LOGPROBS),
        f"0 (the drawn token's alone) to {MOST_LOGPROBS}",
    ),
    "speculate": (lambda v: isinstance(v, bool), "True or False"),
    "json_schema": (lambda v: _text(v) or isinstance(v, Mapping), "a JSON schema"),
    "regex": (_text, "a regular expression"),
    "grammar": (_text, "a Lark grammar"),
}

"""What a caller may ask of an answer, and the one-line refusal of what cannot be.

`Settings` is the table of answer options: name, type, range, default and help stand there and
nowhere else in Python. The command line (cli/options.py) and the server's request schema
(server/wire/requests.py) are made from it; spec/options.json holds the other languages to it.
Knows nothing of sessions; ranges that depend on a model are checked where the model is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import parse_conditions

MOST_STOPS = 16
LOOP = 8  # repetitions that are taken for a loop in greedy answers
CONSTRAINTS = ("json_schema", "regex", "grammar")


@dataclass(frozen=True)
class Option:
    """Help and range of an option: `low` to `high`, without `low` itself if `above`, and so on.

    `means` says what one of the values stands for; `expected` replaces the range in words.
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    means: str = ""
    words: str = ""

    @property
    def expected(self) -> str:
        """The range in words: "0 to 100 (0: greedy)"."""
        low, high = (None if end is None else f"{end:g}" for end in (self.low, self.high))
        if self.words:
            return self.words
        if high is None:
            span = f"more than {low}" if self.above else f"{low} or more"
        elif self.above:
            span = f"more than {low}, {'less than' if self.below else 'at most'} {high}"
        else:
            span = f"{low} to {'less than ' if self.below else ''}{high}"
        return f"{span} ({self.means})" if self.means else span

    def holds(self, value: float) -> bool:
        """Whether the number `value` is in range."""
        enough = self.low is None or (value > self.low if self.above else value >= self.low)
        few = self.high is None or (value < self.high if self.below else value <= self.high)
        return enough and few


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`: the fields of Settings, all optional."""

    condition: str
    max_tokens: int
    max_repeats: int | None
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
    l_cycles: Sequence[int] | None


@dataclass(frozen=True)
class Settings:
    """How to answer. Raises HRMEdgeError for a value out of range."""

    condition: Annotated[
        str, Option("What the model is told: direct, cot, noisy, synth, joined by commas.")
    ] = "direct"
    max_tokens: Annotated[
        int, Option("Most tokens of an answer; the context may hold fewer.", low=1)
    ] = 256
    max_repeats: Annotated[
        int | None,
        Option(
            f"End an answer that repeats a block of tokens so often; {LOOP} if greedy, else off.",
            0,
            1000,
            means="0: off",
        ),
    ] = None
    temperature: Annotated[float, Option("How far draws spread.", 0, 100, means="0: greedy")] = 0.0
    top_k: Annotated[int, Option("Keep this many likeliest tokens.", low=0, means="0: off")] = 0
    top_p: Annotated[
        float,
        Option("Keep the likeliest tokens that make up this share.", 0, 1, True, means="1: off"),
    ] = 1.0
    min_p: Annotated[
        float,
        Option("Drop tokens below this share of the likeliest.", 0, 1, below=True, means="0: off"),
    ] = 0.0
    seed: Annotated[int | None, Option("The same seed gives the same sample.", low=0)] = None
    repetition_penalty: Annotated[
        float, Option("Over prompt and answer.", 0, 10, True, means="1: off")
    ] = 1.0
    presence_penalty: Annotated[
        float, Option("Subtracted once from tokens of the answer.", -2, 2, means="0: off")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Option("Subtracted for each time a token occurred.", -2, 2, means="0: off")
    ] = 0.0
    logit_bias: Annotated[
        Mapping[int, float],
        Option("Added to tokens' logits.", -100, 100, words="token ids with numbers, -100 to 100"),
    ] = field(default_factory=dict)
    stop: Annotated[
        str | Sequence[str],
        Option(
            "Strings that end an answer and are no part of it.",
            words=f"a string that is not empty, or at most {MOST_STOPS} of them",
        ),
    ] = ()
    logprobs: Annotated[
        int | None,
        Option("Log-probabilities, and of how many likely tokens.", 0, 20, means="0: its own"),
    ] = None
    speculate: Annotated[bool, Option("Draft tokens where it pays.", words="True or False")] = True
    json_schema: Annotated[
        str | Mapping[str, Any] | None,
        Option("Answer with JSON of this schema.", words="a JSON schema"),
    ] = None
    regex: Annotated[
        str | None,
        Option("Answer with text that matches.", words="a regular expression"),
    ] = None
    grammar: Annotated[
        str | None,
        Option("Answer with text of this grammar, in Lark.", words="a Lark grammar"),
    ] = None
    l_cycles: Annotated[
        Sequence[int] | None,
        Option(
            "L passes of each H cycle for the answer's tokens, at some loss.",
            low=1,
            words="a number of L passes for each H cycle, such as [1, 2]",
        ),
    ] = None

    def __post_init__(self) -> None:
        in_range("condition", self.condition, isinstance(self.condition, str), "a string")
        try:
            parse_conditions(self.condition)
        except HRMEdgeError as error:
            raise HRMEdgeError(str(error), "condition") from None
        for name, row in TABLE.items():
            value = getattr(self, name)
            in_range(name, value, _accepts(name, row, value), row.option.expected)
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise HRMEdgeError(
                f"{given[0]} and {given[1]} are both given, expected one constraint", given[1]
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings from keyword arguments. Raises HRMEdgeError for an unknown name."""
        for name in options:
            if name not in TABLE:
                known = ", ".join(TABLE)
                raise HRMEdgeError(f"unknown option {name!r}; known are {known}", name)
        return cls(**options)

    @property
    def loop_limit(self) -> int:
        """How often a block may stand in a row before the answer ends; 0: as often as it likes."""
        if self.max_repeats is None:
            return LOOP if self.temperature == 0 else 0
        return self.max_repeats

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple, a lone one too."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True)
class Row:
    """One line of the table; `optional`: None is a value too, and the default."""

    kind: Any  # int, float, bool, str, or a generic type
    optional: bool
    default: Any
    option: Option


def _table() -> dict[str, Row]:
    """The rows of Settings by name, read off its annotations."""
    hints = get_type_hints(Settings, include_extras=True)
    rows: dict[str, Row] = {}
    for each in fields(Settings):
        kind, option = get_args(hints[each.name])
        kinds = get_args(kind)
        optional = type(None) in kinds
        if optional and len(kinds) == 2:
            kind = kinds[0]
        default = {} if each.name == "logit_bias" else each.default
        rows[each.name] = Row(kind, optional, default, option)
    return rows


TABLE = _table()
MOST_LOGPROBS = int(TABLE["logprobs"].option.high or 0)


def in_range(name: str, value: object, ok: bool, expected: str) -> None:
    """Raise the HRMEdgeError for a `value` that is not `ok`."""
    if not ok:
        shown = value if isinstance(value, int | float) else repr(value)
        raise HRMEdgeError(f"{name} is {shown}, expected {expected}", name)


def _accepts(name: str, row: Row, value: Any) -> bool:
    if value is None:
        return row.optional
    if row.kind is bool:
        return isinstance(value, bool)
    if row.kind in (int, float):
        return (_whole(value) if row.kind is int else _number(value)) and row.option.holds(value)
    if name == "stop":
        return _is_stop(value)
    if name == "l_cycles":
        listed = isinstance(value, list | tuple) and len(value) > 0
        return listed and all(_whole(n) and row.option.holds(n) for n in value)
    if name == "logit_bias":
        if not isinstance(value, Mapping):
            return False
        return all(_whole(k) and _number(v) and row.option.holds(v) for k, v in value.items())
    return isinstance(value, str) or (name == "json_schema" and isinstance(value, Mapping))


def _number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_stop(value: Any) -> bool:
    found = (value,) if isinstance(value, str) else value
    listed = isinstance(found, list | tuple) and len(found) <= MOST_STOPS
    return listed and all(isinstance(s, str) and s for s in found)

"""Answers that keep to a JSON schema, a regular expression or a grammar, through llguidance.

A processor masks every token that the constraint rules out, and a drafter proposes those that it
forces; they share one matcher, which only ever sees tokens that were drawn.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm_edge.errors import HRMEdgeError

from ..settings import CONSTRAINTS, Settings

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class NotInstalled(HRMEdgeError):
    """Constraints cannot be had here: no fault of what was asked."""


# As json.dumps writes; a model is not left to choose its blanks, or it may choose no end of them.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """What an answer is bound to: the option that says so, and its text."""

    option: str  # json_schema, regex or grammar
    text: str

    @classmethod
    def of(cls, settings: Settings) -> "Grammar | None":
        """The constraint of `settings`, if there is one."""
        option = next((n for n in CONSTRAINTS if getattr(settings, n) is not None), None)
        if option is None:
            return None
        value = getattr(settings, option)
        return cls(option, value if isinstance(value, str) else json.dumps(value))


class Guide:
    """What constraints need to know of a model; its tokenizer is prepared on first use.

    `trial` is called with each grammar before it is compiled and may refuse it: what comes from
    strangers can take minutes and gigabytes to compile.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, ends: Sequence[int]) -> None:
        self.tokenizer_path, self.vocab_size, self.ends = tokenizer, vocab_size, list(ends)
        self.trial: Callable[[Grammar], None] | None = None
        self._tokenizer: LLTokenizer | None = None

    def constraint(self, settings: Settings) -> "Constraint | None":
        """What `settings` ask for, if anything. Raises HRMEdgeError if it cannot be kept to."""
        grammar = Grammar.of(settings)
        if grammar is None:
            return None
        self.prepare()
        if self.trial is not None:
            self.trial(grammar)
        matcher = self.matcher(grammar)
        if isinstance(matcher, str):
            raise HRMEdgeError(
                f"{grammar.option} cannot be used: {_one_line(matcher)}", grammar.option
            )
        return Constraint(matcher, self.vocab_size, self.ends)

    def prepare(self) -> None:
        """Load llguidance and the tokenizer. Raises HRMEdgeError if it is not installed."""
        if self._tokenizer is not None:
            return
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError:
            raise NotInstalled(
                "constraints need llguidance: pip install 'hrm-edge[guided]'"
            ) from None
        text = self.tokenizer_path.read_text(encoding="utf-8")
        self._tokenizer = LLTokenizer(text, n_vocab=self.vocab_size, eos_token=self.ends)

    def matcher(self, grammar: Grammar) -> "LLMatcher | str":
        """The compiled grammar, or what is wrong with it."""
        from llguidance import LLMatcher

        assert self._tokenizer is not None, "prepare comes first"
        try:
            matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0)
        except ValueError as error:
            return str(error)
        return matcher.get_error() if matcher.is_error() else matcher


class Constraint:
    """One answer's progress through a grammar: a logits processor and a drafter."""

    name, cost, trust = "constraint", 0.0, 0.99

    def __init__(self, matcher: "LLMatcher", vocab_size: int, ends: list[int]) -> None:
        self._matcher, self._vocab_size, self._ends = matcher, vocab_size, ends
        self._seen = 0  # tokens of the answer that the matcher has consumed

    def process(self, answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        """Minus infinity for every token that cannot come next; logits [V]."""
        self._follow(answer)
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        if not allowed.any():
            raise HRMEdgeError(f"the constraint allows no token ({self._matcher.stop_reason()})")
        return np.where(allowed, logits, np.float32(-np.inf))

    def propose(self, answer: Sequence[int], most: int) -> list[int]:
        """Tokens that must come next; the end where nothing else may."""
        self._follow(answer)
        if self._matcher.is_stopped():
            return self._ends[:1]
        return self._matcher.compute_ff_tokens()[:most]

    def _follow(self, answer: Sequence[int]) -> None:
        for token in answer[self._seen :]:
            if not self._matcher.consume_token(token):
                raise HRMEdgeError(f"the constraint failed: {_one_line(self._matcher.get_error())}")
        self._seen = len(answer)


def _source(grammar: Grammar) -> str:
    """`grammar` as llguidance takes it. Raises ValueError if it is none."""
    from llguidance import LLMatcher

    if grammar.option == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.option == "grammar":
        return LLMatcher.grammar_from_lark(grammar.text)
    return LLMatcher.grammar_from_json_schema(grammar.text, JSON_STYLE)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]

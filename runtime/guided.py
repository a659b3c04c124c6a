"""Answers that keep to a JSON schema, a regular expression or a grammar, through llguidance.

A processor masks every token that the constraint rules out, and a drafter proposes those that it
forces; they share one matcher, which only ever sees tokens that were drawn.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm_edge.errors import HRMEdgeError

from .settings import Settings

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# As json.dumps writes; a model is not left to choose its blanks, or it may choose no end of them.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Guide:
    """What constraints need to know of a model; its tokenizer is prepared on first use."""

    def __init__(self, tokenizer: Path, vocab_size: int, ends: Sequence[int]) -> None:
        self._path, self._vocab_size, self.ends = tokenizer, vocab_size, list(ends)
        self._tokenizer: LLTokenizer | None = None

    def constraint(self, settings: Settings) -> "Constraint | None":
        """What `settings` ask for, if anything. Raises HRMEdgeError if it cannot be kept to."""
        if settings.json_schema is settings.regex is settings.grammar is None:
            return None
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ModuleNotFoundError:
            raise HRMEdgeError(
                "constraints need llguidance: pip install 'hrm-edge[guided]'"
            ) from None
        name, grammar = _grammar(settings)
        if self._tokenizer is None:
            text = self._path.read_text(encoding="utf-8")
            self._tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self.ends)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise HRMEdgeError(f"{name} cannot be used: {_one_line(matcher.get_error())}")
        return Constraint(matcher, self._vocab_size, self.ends)


class Constraint:
    """One answer's progress through a grammar: a logits processor and a drafter."""

    name, free, resumed, trust = "constraint", True, False, 0.99

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


def _grammar(settings: Settings) -> tuple[str, str]:
    """(which constraint it is, the grammar for llguidance)."""
    from llguidance import LLMatcher

    if settings.regex is not None:
        return "regex", LLMatcher.grammar_from_regex(settings.regex)
    if settings.grammar is not None:
        return "grammar", LLMatcher.grammar_from_lark(settings.grammar)
    schema = settings.json_schema
    assert schema is not None
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        return "json_schema", LLMatcher.grammar_from_json_schema(text, JSON_STYLE)
    except ValueError as error:
        raise HRMEdgeError(f"json_schema cannot be used: {_one_line(str(error))}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]

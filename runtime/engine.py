"""Prompts become text: `generate` gathers what `stream` yields over a session's logits.

Knows nothing of how a session computes them.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from hrm_edge.bundle import Bundle, Manifest
from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import Tokenizer, format_prompt, parse_conditions

from . import memory
from .sampling import make_sampler
from .session import Session, open_session


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; see Settings for meanings and defaults."""

    condition: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None


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

    def __post_init__(self) -> None:
        parse_conditions(self.condition)
        _in_range("max_tokens", self.max_tokens, self.max_tokens >= 1, "1 or more")
        warm = math.isfinite(self.temperature) and self.temperature >= 0
        _in_range("temperature", self.temperature, warm, "0 (greedy) or more")
        _in_range("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _in_range("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1 (off)")
        _in_range("min_p", self.min_p, 0 <= self.min_p < 1, "0 (off) to less than 1")
        seeded = self.seed is None or self.seed >= 0
        _in_range("seed", self.seed, seeded, "0 or more")


@dataclass(frozen=True)
class Stats:
    """Times of one answer in seconds and tokens per second; memory in bytes, if it can be had."""

    prompt_tokens: int
    completion_tokens: int
    ttft: float
    prefill_tps: float
    decode_tps: float
    peak_memory: int | None
    anonymous_memory: int | None


@dataclass(frozen=True)
class Piece:
    """One token of an answer and the text it completes ("" inside a character).

    The last piece alone has a finish_reason, "stop" or "length", and stats.
    """

    text: str
    token: int
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer; `tokens` ends with the end-of-answer token if finish_reason is "stop"."""

    text: str
    tokens: list[int]
    finish_reason: str
    stats: Stats


class Model:
    """A loaded bundle that answers prompts, one at a time."""

    def __init__(self, session: Session, tokenizer: Tokenizer, manifest: Manifest) -> None:
        self.session, self.tokenizer, self.manifest = session, tokenizer, manifest

    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion:
        """Answer `prompt`. Raises HRMEdgeError for bad options or a prompt that does not fit."""
        pieces = list(self.stream(prompt, **options))
        last = pieces[-1]
        assert last.finish_reason is not None and last.stats is not None
        text = "".join(piece.text for piece in pieces)
        return Completion(text, [p.token for p in pieces], last.finish_reason, last.stats)

    def stream(self, prompt: str, **options: Unpack[Options]) -> Iterator[Piece]:
        """Yield the answer token by token. Raises as `generate`, before anything is computed."""
        settings = Settings(**options)
        ids = self.encode(prompt, settings.condition)
        return self._pieces(ids, settings)

    def encode(self, prompt: str, condition: str) -> list[int]:
        """The prefix of `prompt` in tokens. Raises HRMEdgeError if no token of an answer fits."""
        ids = self.tokenizer.encode(format_prompt(prompt, parse_conditions(condition)))
        if len(ids) >= self.session.max_context:
            raise HRMEdgeError(
                f"the prompt is {len(ids)} tokens long, max_context is "
                f"{self.session.max_context}; shorten it or load with a larger max_context"
            )
        return ids

    def _pieces(self, ids: list[int], settings: Settings) -> Iterator[Piece]:
        s = settings
        sample = make_sampler(s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
        limit = min(s.max_tokens, self.session.max_context - len(ids))
        decoder, clock = self.tokenizer.stream(), _Clock(len(ids))
        logits = self.session.prefill(ids)
        clock.prefilled()
        while True:
            token = sample(logits)
            clock.sampled()
            stop = token in self.manifest.eos_token_ids
            text = "" if stop else decoder.push(token)
            if stop or clock.tokens == limit:
                yield Piece(text, token, "stop" if stop else "length", clock.stats())
                return
            yield Piece(text, token)
            logits = self.session.decode([token])[-1]


class _Clock:
    """Times one answer. Between tokens, the time a consumer takes counts as decoding."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.tokens = prompt_tokens, 0
        self.start = self.ready = self.first = self.last = time.perf_counter()

    def prefilled(self) -> None:
        self.ready = time.perf_counter()

    def sampled(self) -> None:
        self.tokens, self.last = self.tokens + 1, time.perf_counter()
        if self.tokens == 1:
            self.first = self.last

    def stats(self) -> Stats:
        decoded, seconds = self.tokens - 1, self.last - self.first
        return Stats(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            ttft=self.first - self.start,
            prefill_tps=self.prompt_tokens / (self.ready - self.start),
            decode_tps=decoded / seconds if decoded else 0.0,
            peak_memory=memory.peak(),
            anonymous_memory=memory.anonymous(),
        )


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    max_context: int | None = None,
    verify: bool = False,
) -> Model:
    """Load a bundle. `threads` None leaves the choice to the engine (one per physical core).

    `max_context` bounds prompt and answer together, in tokens; `verify` hashes every file first.
    Raises HRMEdgeError if the bundle is damaged, cannot be run here, or does not fit.
    """
    if threads is not None:
        _in_range("threads", threads, threads >= 1, "1 or more")
    bundle = Bundle.open(Path(path), verify)
    tokenizer = Tokenizer(bundle.path)
    vocabulary = bundle.manifest.model.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise HRMEdgeError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} tokens, the model {vocabulary}; "
            "they do not belong together"
        )
    return Model(open_session(bundle, threads, max_context), tokenizer, bundle.manifest)


def _in_range(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise HRMEdgeError(f"{name} is {value}, expected {expected}")

"""One answer, step by step: what it wants of its session, and the pieces that come of it.

An answer asks instead of calling: whoever drives it may run several of them in one call. `alone`
drives one; rows.py drives many.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hrm_edge import memory

from ..session.protocol import Session
from .speculation import Tally, Verifier
from .stopping import Ending


@dataclass(frozen=True)
class Stats:
    """Times of one answer in seconds and tokens per second; memory in bytes, if it can be had.

    cached_tokens of the prompt were held already and not computed; prefill_tps is then 0. Each of
    `calls` after the prefix decoded one token and some drafted ones, of which `accepted` stood.
    """

    prompt_tokens: int
    completion_tokens: int
    ttft: float
    prefill_tps: float
    decode_tps: float
    peak_memory: int | None
    anonymous_memory: int | None
    cached_tokens: int = 0
    calls: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Piece:
    """One token of an answer and the text it completes.

    The text is "" inside a character and while it may become a stop string. `logprob` and
    `top_logprobs` ((token, logprob), likeliest first) are there if asked for. The last piece alone
    has a finish_reason, "stop", "length" or "repetition" (see stopping.py), and stats.
    """

    text: str
    token: int
    finish_reason: str | None = None
    stats: Stats | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A whole answer; `tokens` ends with the end-of-answer token, or those of a stop string.

    `logprobs` holds each token's, where they were asked for.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    stats: Stats
    logprobs: tuple[float, ...] = ()

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> "Completion":
        """The answer whose pieces these are, all of them."""
        last = pieces[-1]
        assert last.finish_reason is not None and last.stats is not None
        text = "".join(piece.text for piece in pieces)
        logprobs = tuple(p.logprob for p in pieces if p.logprob is not None)
        tokens = [piece.token for piece in pieces]
        return cls(text, tokens, last.finish_reason, last.stats, logprobs)


def likelihood(completion: Completion) -> float:
    """The mean log-probability of an answer's tokens, under the model itself."""
    assert completion.logprobs, "an answer without logprobs"
    return sum(completion.logprobs) / len(completion.logprobs)


@dataclass(frozen=True)
class Prefix:
    """Wants `ids` to be what its session begins with; is sent logits [V]. See Session.start."""

    ids: list[int]
    l_cycles: Sequence[int] | None = None


@dataclass(frozen=True)
class Append:
    """Wants `ids` appended; is sent logits [len(ids), V]."""

    ids: list[int]


Wish = Prefix | Append
Steps = Generator[Piece | Wish, np.ndarray | None, None]


class Answer(Protocol):
    """What can be answered in any session of a model, once."""

    @property
    def ids(self) -> list[int]:
        """Of its prefix."""
        ...

    def steps(self, session: Session, alone: Callable[[], bool]) -> Steps:
        """Pieces, and wishes between them; `alone` tells whether no other answer waits for calls.

        Only then may it append several ids at once.
        """
        ...


@dataclass(frozen=True)
class Generation:
    """An answer to be drawn token by token; `verifier` makes what draws it in a session."""

    ids: list[int]
    l_cycles: Sequence[int] | None
    verifier: Callable[[Session], Verifier]
    ending: Ending
    decode: Callable[[int], str]  # the text that a token completes

    def steps(self, session: Session, alone: Callable[[], bool]) -> Steps:
        """As Answer says."""
        cached = len(self.ids) if session.prefix == self.ids else 0
        verifier, clock = self.verifier(session), _Clock(len(self.ids), cached)
        logits = yield Prefix(self.ids, self.l_cycles)
        assert logits is not None
        clock.prefilled()
        rows = logits[None]
        while True:
            for choice in verifier.take(rows):
                clock.sampled()
                text, reason = self.ending.push(choice.token, self.decode)
                stats = clock.stats(verifier.tally) if reason else None
                yield Piece(text, choice.token, reason, stats, choice.logprob, choice.top_logprobs)
                if reason:
                    return
            rows = yield Append(verifier.ask(drafts=alone()))
            assert rows is not None


def alone(answer: Answer, session: Session) -> Iterator[Piece]:
    """The pieces of `answer`, which has `session` for itself."""
    steps, sent = answer.steps(session, lambda: True), None
    while True:
        try:
            step = steps.send(sent)
        except StopIteration:
            return
        sent = None
        if isinstance(step, Piece):
            yield step
        else:
            sent = fulfil(step, session)


def fulfil(wish: Wish, session: Session) -> np.ndarray:
    """The logits that `wish` is sent."""
    if isinstance(wish, Prefix):
        return session.start(wish.ids, wish.l_cycles)
    return session.decode(wish.ids)


class _Clock:
    """Times one answer. Between tokens, the time a consumer takes counts as decoding."""

    def __init__(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.prompt_tokens, self.cached_tokens, self.tokens = prompt_tokens, cached_tokens, 0
        self.start = self.ready = self.first = self.last = time.perf_counter()

    def prefilled(self) -> None:
        self.ready = time.perf_counter()

    def sampled(self) -> None:
        self.tokens, self.last = self.tokens + 1, time.perf_counter()
        if self.tokens == 1:
            self.first = self.last

    def stats(self, tally: Tally) -> Stats:
        decoded, seconds = self.tokens - 1, self.last - self.first
        computed = self.prompt_tokens - self.cached_tokens
        return Stats(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            ttft=self.first - self.start,
            prefill_tps=computed / (self.ready - self.start),
            decode_tps=decoded / seconds if decoded else 0.0,
            peak_memory=memory.peak(),
            anonymous_memory=memory.anonymous_roughly(),
            cached_tokens=self.cached_tokens,
            calls=tally.calls,
            drafted=tally.drafted,
            accepted=tally.accepted,
        )

"""Log-probabilities as OpenAI's two APIs write them, and the scoring of a given answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hrm_edge import memory
from hrm_edge.prompt import Tokenizer

from ...decoding.answer import Append, Piece, Prefix, Stats, Steps
from ...decoding.sampling import make_chooser
from ...session.protocol import Session
from ...settings import Settings

SCORED_AT_ONCE = 32  # tokens a call, so that logits stay small and a cancel is heard


class Names:
    """What tokens are called: their text, or "<token 17>" where that is no whole character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, token: int) -> str:
        """The name of `token`; different tokens have different names but for equal texts."""
        text = self._tokenizer.decode([token])
        return text if text and "\ufffd" not in text else f"<token {token}>"

    def entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """The chat form of one token."""
        name = self(token)
        whole = not name.startswith("<token ")
        return {
            "token": name,
            "logprob": logprob,
            "bytes": list(name.encode()) if whole else None,
        }


def chat_logprobs(pieces: Sequence[Piece], names: Names) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""
    content = []
    for piece in pieces:
        top = [names.entry(token, logprob) for token, logprob in piece.top_logprobs]
        content.append(names.entry(piece.token, piece.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(pieces: Sequence[Piece], names: Names, offset: int = 0) -> dict[str, Any]:
    """The `logprobs` object of a completion choice whose text so far has `offset` characters."""
    offsets, top = [], []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
        likely = {names(token): logprob for token, logprob in piece.top_logprobs}
        top.append(None if piece.logprob is None else likely)
    return {
        "tokens": [names(piece.token) for piece in pieces],
        "token_logprobs": [piece.logprob for piece in pieces],
        "top_logprobs": top,
        "text_offset": offsets,
    }


@dataclass(frozen=True)
class Scoring:
    """An Answer that is given: the prefix and `answer` as pieces, the latter with logprobs.

    The prefix is read in both directions, so its tokens have none. `more` is 0 or 1: the number of
    tokens to add, greedily.
    """

    tokenizer: Tokenizer
    ids: list[int]
    answer: list[int]
    settings: Settings
    more: int

    def steps(self, session: Session, alone: Callable[[], bool]) -> Steps:
        """As Answer says; several tokens a call, whoever waits."""
        started, held = time.perf_counter(), list[Piece]()
        logits = yield Prefix(self.ids, self.settings.l_cycles)
        assert logits is not None
        ready = time.perf_counter()
        for piece in (Piece(self._text(token), token) for token in self.ids):
            held.append(piece)
            if len(held) > 1:
                yield held.pop(0)
        for at in range(0, len(self.answer), SCORED_AT_ONCE):
            part = self.answer[at : at + SCORED_AT_ONCE]
            rows = yield Append(part)
            assert rows is not None
            for token, row in zip(part, [logits, *rows[:-1]], strict=True):
                yield held.pop()
                held.append(self._scored(token, row))
            logits = rows[-1]
        if self.more:
            yield held.pop()
            held.append(self._scored(int(logits.argmax()), logits))
        seconds = time.perf_counter() - ready
        stats = Stats(
            prompt_tokens=len(self.ids) + len(self.answer),
            completion_tokens=self.more,
            ttft=time.perf_counter() - started,
            prefill_tps=len(self.ids) / max(ready - started, 1e-9),
            decode_tps=len(self.answer) / max(seconds, 1e-9),
            peak_memory=memory.peak(),
            anonymous_memory=memory.anonymous_roughly(),
        )
        yield replace(held[0], finish_reason="length", stats=stats)

    def _scored(self, token: int, logits: np.ndarray) -> Piece:
        choose = make_chooser(lambda _: token, (), self.settings.logprobs or 0)
        choice = choose((), logits)
        top = choice.top_logprobs
        return Piece(self._text(token), token, logprob=choice.logprob, top_logprobs=top)

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])

"""Log-probabilities as OpenAI's two APIs write them, and the scoring of a given answer."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hrm_edge import memory
from hrm_edge.prompt import Tokenizer

from ...engine import Model, Piece, Stats
from ...sampling import Choice, make_chooser
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


def score(
    model: Model, prefix: list[int], answer: list[int], settings: Settings, more: int
) -> Iterator[Piece]:
    """`prefix` and `answer` as pieces, those of the answer with the model's log-probabilities.

    The prefix is read in both directions, so its tokens have none. `more` is 0 or 1: the number of
    tokens to add, greedily. The last piece has stats, as one of an answer has.
    """
    started, held = time.perf_counter(), list[Piece]()
    top = settings.logprobs or 0
    logits = model.session.start(prefix, settings.l_cycles)
    ready = time.perf_counter()
    for piece in (Piece(_text(model, token), token) for token in prefix):
        held.append(piece)
        if len(held) > 1:
            yield held.pop(0)
    for at in range(0, len(answer), SCORED_AT_ONCE):
        part = answer[at : at + SCORED_AT_ONCE]
        rows = model.session.decode(part)
        for token, row in zip(part, [logits, *rows[:-1]], strict=True):
            yield held.pop()
            held.append(_scored(model, token, row, top))
        logits = rows[-1]
    if more:
        yield held.pop()
        held.append(_scored(model, int(logits.argmax()), logits, top))
    seconds = time.perf_counter() - ready
    stats = Stats(
        prompt_tokens=len(prefix) + len(answer),
        completion_tokens=more,
        ttft=time.perf_counter() - started,
        prefill_tps=len(prefix) / max(ready - started, 1e-9),
        decode_tps=len(answer) / max(seconds, 1e-9),
        peak_memory=memory.peak(),
        anonymous_memory=memory.anonymous(),
    )
    yield replace(held[0], finish_reason="length", stats=stats)


def _scored(model: Model, token: int, logits: Any, top: int) -> Piece:
    choice: Choice = make_chooser(lambda _: token, (), top)((), logits)
    return Piece(
        _text(model, token), token, logprob=choice.logprob, top_logprobs=choice.top_logprobs
    )


def _text(model: Model, token: int) -> str:
    return model.tokenizer.decode([token])

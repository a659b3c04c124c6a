"""The JSON of answers, whole or in chunks, as OpenAI's clients read it."""

import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from ...engine import Piece, Stats
from .ask import Ask
from .logprobs import Names, chat_logprobs, text_logprobs


@dataclass
class Choice:
    """One answer as it grows."""

    text: str = ""
    finish_reason: str | None = None
    stats: Stats | None = None
    pieces: list[Piece] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        """The next piece."""
        self.text += piece.text
        self.pieces.append(piece)
        self.finish_reason, self.stats = piece.finish_reason, piece.stats


class Reply:
    """Everything that is sent for one request."""

    def __init__(self, ask: Ask, model: str, names: Names) -> None:
        self.ask, self.model, self.names = ask, model, names
        self.id = ("chatcmpl-" if ask.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.choices = [Choice() for _ in range(ask.choices)]

    def whole(self) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        choices = [self._whole_choice(i, choice) for i, choice in enumerate(self.choices)]
        return self._envelope("", choices) | {"usage": self.usage()} | _figures(self.choices[-1])

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before the first token."""
        if not self.ask.chat:
            return []
        start = {"role": "assistant", "content": ""}
        return [self._chunk({"index": i, "delta": start}) for i in range(self.ask.choices)]

    def add(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Append a piece to choice `index`; its chunks. Inside a character there are none."""
        choice = self.choices[index]
        logprobs = self._logprobs([piece], len(choice.text))
        choice.add(piece)
        if not piece.text and piece.finish_reason is None and logprobs is None:
            return []
        shown: dict[str, Any] = {"index": index, "logprobs": logprobs}
        if not self.ask.chat:
            text = {"text": piece.text, "finish_reason": _openais(piece.finish_reason)}
            return [self._chunk(shown | text) | _figures(choice)]
        found = []
        if piece.text or logprobs:
            found.append(self._chunk(shown | {"delta": {"content": piece.text}}))
        if piece.finish_reason:
            last = {"index": index, "delta": {}, "finish_reason": _openais(piece.finish_reason)}
            found.append(self._chunk(last) | _figures(choice))
        return found

    def closing(self) -> list[dict[str, Any]]:
        """Chunks after the last token."""
        if not self.ask.include_usage:
            return []
        return [self._envelope(".chunk", []) | {"usage": self.usage()}]

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, each counted once, and of all answers."""
        done = [choice.stats for choice in self.choices if choice.stats]
        prompt = sum(stats.prompt_tokens for stats in done[:: self.ask.n])
        answer = sum(stats.completion_tokens for stats in done)
        total = prompt + answer
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total}

    def _envelope(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.ask.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        whole = {"logprobs": None, "finish_reason": None} | choice
        usage = {"usage": None} if self.ask.include_usage else {}
        return self._envelope(".chunk", [whole]) | usage

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        shown = {
            "index": index,
            "logprobs": self._logprobs(choice.pieces),
            "finish_reason": _openais(choice.finish_reason),
        }
        if not self.ask.chat:
            return shown | {"text": choice.text}
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return shown | {"message": message}

    def _logprobs(self, pieces: list[Piece], offset: int = 0) -> dict[str, Any] | None:
        if self.ask.options.get("logprobs") is None:
            return None
        shown = [piece for piece in pieces if piece.finish_reason != "stop" or piece.text]
        if self.ask.chat:
            return chat_logprobs(shown, self.names)
        return text_logprobs(shown, self.names, offset)


def _openais(reason: str | None) -> str | None:
    """OpenAI's clients know no "repetition"."""
    return "stop" if reason == "repetition" else reason


def _figures(choice: Choice) -> dict[str, Any]:
    """Extension: times and memory of the answer, see Stats, and why it ended."""
    if not choice.stats:
        return {}
    return {"hrm_edge": asdict(choice.stats) | {"finish_reason": choice.finish_reason}}

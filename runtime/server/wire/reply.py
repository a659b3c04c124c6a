"""The JSON of answers, whole or in chunks, as OpenAI's clients read it."""

import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from hrm_edge.tool_format import ToolFormat

from ...decoding.tools import Call, CallReader
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
    reader: CallReader | None = None  # where tools may be called
    calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """The next piece: what a stream's clients are told of it, one delta for each part."""
        self.pieces.append(piece)
        self.finish_reason, self.stats = piece.finish_reason, piece.stats
        parts: list[str | Call] = [piece.text] if piece.text else []
        if self.reader is not None:
            parts = list(self.reader.push(piece.text))
            if piece.finish_reason and (left := self.reader.flush()).strip():
                parts.append(left)
        return [self._taken(part) for part in parts]

    @property
    def reason(self) -> str | None:
        """`finish_reason` as OpenAI's clients know it."""
        if self.calls and self.finish_reason == "stop":
            return "tool_calls"
        return "stop" if self.finish_reason == "repetition" else self.finish_reason

    def _taken(self, part: str | Call) -> dict[str, Any]:
        if isinstance(part, str):
            self.text += part
            return {"content": part}
        function = {"name": part.name, "arguments": part.arguments}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1} | call]}


class Reply:
    """Everything that is sent for one request."""

    def __init__(self, ask: Ask, model: str, names: Names, form: ToolFormat | None = None) -> None:
        """`form` is how the model writes calls, where `ask` has tools."""
        self.ask, self.model, self.names = ask, model, names
        self.id = ("chatcmpl-" if ask.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.choices = [Choice() for _ in range(ask.choices)]
        if ask.tools is not None and form is not None:
            for choice in self.choices:
                choice.reader = CallReader(form)

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
        deltas = choice.add(piece)
        if not deltas and piece.finish_reason is None and logprobs is None:
            return []
        shown: dict[str, Any] = {"index": index, "logprobs": logprobs}
        if not self.ask.chat:
            text = {"text": piece.text, "finish_reason": choice.reason}
            return [self._chunk(shown | text) | _figures(choice)]
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        found = [self._chunk(shown | {"delta": delta}) for delta in deltas]
        if piece.finish_reason:
            last = {"index": index, "delta": {}, "finish_reason": choice.reason}
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
            "finish_reason": choice.reason,
        }
        if not self.ask.chat:
            return shown | {"text": choice.text}
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        return shown | {"message": message}

    def _logprobs(self, pieces: list[Piece], offset: int = 0) -> dict[str, Any] | None:
        if self.ask.options.get("logprobs") is None:
            return None
        shown = [piece for piece in pieces if piece.finish_reason != "stop" or piece.text]
        if self.ask.chat:
            return chat_logprobs(shown, self.names)
        return text_logprobs(shown, self.names, offset)


def _figures(choice: Choice) -> dict[str, Any]:
    """Extension: times and memory of the answer, see Stats, and why it ended."""
    if not choice.stats:
        return {}
    return {"hrm_edge": asdict(choice.stats) | {"finish_reason": choice.finish_reason}}

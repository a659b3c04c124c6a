"""Where an answer ends: an end token, a stop string, the limit, or a loop that it does not leave.

Text that may still become a stop string is held back, so that none is ever shown.
"""

from collections.abc import Callable, Container, Sequence

LONGEST_PERIOD = 64  # tokens of what is repeated
LEAST_REPEATED = 128  # tokens that repetitions have to fill: a ruled line is no loop


class Ending:
    """Follows one answer, token by token."""

    def __init__(
        self, ends: Container[int], stops: Sequence[str], limit: int, repeats: int
    ) -> None:
        self._ends, self._stop, self._limit = ends, StopText(stops), limit
        self._loop = Repetition(repeats) if repeats else None
        self._count = 0

    def push(self, token: int, decode: Callable[[int], str]) -> tuple[str, str | None]:
        """What of the text can be shown now, and why the answer ends with `token`, if it does."""
        self._count += 1
        ended = token in self._ends
        text, found = self._stop.push("" if ended else decode(token))
        if ended or found:
            reason = "stop"
        elif self._loop is not None and self._loop.push(token):
            reason = "repetition"
        elif self._count == self._limit:
            reason = "length"
        else:
            return text, None
        return text + self._stop.flush(), reason


class Repetition:
    """Finds the end of a list of tokens that is one block over and over.

    It is a loop when a block of at most LONGEST_PERIOD tokens stands there `repeats` times in a
    row, and the repetitions fill at least LEAST_REPEATED tokens.
    """

    def __init__(self, repeats: int) -> None:
        self._last: list[int] = []  # at most LONGEST_PERIOD tokens
        self._same = [0] * (LONGEST_PERIOD + 1)  # by period: tokens in a row like those before
        self._needed = [max((repeats - 1) * p, LEAST_REPEATED - p) for p in range(len(self._same))]

    def push(self, token: int) -> bool:
        """Whether `token` makes a loop whole."""
        for period in range(1, len(self._last) + 1):
            same = self._last[-period] == token
            self._same[period] = self._same[period] + 1 if same else 0
        self._last = [*self._last[-LONGEST_PERIOD + 1 :], token]
        return any(map(int.__ge__, self._same[1:], self._needed[1:]))


class StopText:
    """Looks for stop strings in a growing text, wherever its tokens end."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""

    @property
    def held(self) -> str:
        """Text that may become a stop string."""
        return self._held

    def push(self, text: str) -> tuple[str, bool]:
        """What of the text can be shown now, and whether a stop string was found behind it."""
        held = self._held + text
        found = [at for at in map(held.find, self._stops) if at >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        safe = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[safe:]
        return held[:safe], False

    def flush(self) -> str:
        """The text still held back, which became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

"""Stop strings: text that may still become one is held back, so that none is ever shown."""

from collections.abc import Sequence


class StopText:
    """Looks for stop strings in a growing text, wherever its tokens end."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""

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

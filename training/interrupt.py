"""Ctrl-C while training: the step under way ends first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Stop:
    """`with stop: ...`: a first Ctrl-C inside sets `asked`, a second one raises at once."""

    def __init__(self, active: bool, note: Callable[[str], None]) -> None:
        """Inactive, and in other threads than the main one, Ctrl-C does what it always does."""
        self.asked, self._note = False, note
        self._active = active and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._note("stopping after this step; Ctrl-C once more stops at once")

"""Ctrl-C takes effect at once, in the middle of a long prefill too.

A call into the engine runs to its end before Python sees a signal; so it runs in another thread.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def interruptible(pieces: Iterator[T], cancel: Callable[[], None]) -> Generator[T]:
    """Yield `pieces` from a thread. Where this iterator ends, so does the work.

    `cancel` is the model's; KeyboardInterrupt reaches whoever waits for the next piece.
    """
    found: SimpleQueue[T | BaseException | None] = SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            for piece in pieces:
                found.put(piece)
                if stopped.is_set():
                    return
            found.put(None)
        except BaseException as error:
            found.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while worker.is_alive():
            cancel()
            worker.join(0.02)

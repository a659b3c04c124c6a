"""Progress on stderr, so that stdout stays text a program can read."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
console = Console(stderr=True)
QUIET = 60.0  # seconds between two lines where stderr is no terminal


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield `items` behind a progress bar, or a line a minute where stderr is no terminal."""
    with counting(len(items), label) as done:
        for item in items:
            yield item
            done()


@contextlib.contextmanager
def counting(total: int, label: str) -> Iterator[Callable[[], None]]:
    """Shows progress as `track` does; what it gives is to be called at the end of each step."""
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)
        return
    steps, shown = 0, time.monotonic()

    def done() -> None:
        nonlocal steps, shown
        steps += 1
        if time.monotonic() - shown >= QUIET and steps < total:
            console.print(f"{label} {steps} of {total}", highlight=False)
            shown = time.monotonic()

    yield done


def status(label: str) -> contextlib.AbstractContextManager[object]:
    """A spinner beside `label` for a step without parts; silent where stderr is no terminal."""
    return console.status(label) if console.is_terminal else contextlib.nullcontext()

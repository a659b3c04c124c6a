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
def counting(total: int, label: str, before: int = 0) -> Iterator[Callable[..., None]]:
    """Shows progress as `track` does; what it gives is to be called at the end of each step.

    With the number of tokens that the step made, if it made some: their rate is then shown too.
    `before` steps were done by an earlier run.
    """
    steps, tokens, started = before, 0, time.monotonic()
    shown = started

    def rate() -> str:
        seconds = max(time.monotonic() - started, 1e-9)
        left = seconds * (total - steps) / max(steps - before, 1)
        speed = f", {tokens / seconds:.0f} tok/s" if tokens else ""
        return f"{speed}, {_span(left)} left"

    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(label, total=total, completed=before)

            def advance(made: int = 0) -> None:
                nonlocal steps, tokens
                steps, tokens = steps + 1, tokens + made
                bar.update(task, advance=1, description=label + (rate() if tokens else ""))

            yield advance
        return

    def done(made: int = 0) -> None:
        nonlocal steps, tokens, shown
        steps, tokens = steps + 1, tokens + made
        if time.monotonic() - shown >= QUIET and steps < total:
            console.print(f"{label} {steps} of {total}{rate()}", highlight=False)
            shown = time.monotonic()

    yield done


def _span(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def status(label: str) -> contextlib.AbstractContextManager[object]:
    """A spinner beside `label` for a step without parts; silent where stderr is no terminal."""
    return console.status(label) if console.is_terminal else contextlib.nullcontext()

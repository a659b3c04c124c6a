"""Progress on stderr, so that stdout stays text a program can read."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")
console = Console(stderr=True)


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield `items` behind a progress bar; silent where stderr is no terminal."""
    if not console.is_terminal:
        yield from items
        return
    yield from rich_track(items, label, console=console, transient=True)


def status(label: str) -> contextlib.AbstractContextManager[object]:
    """A spinner beside `label` for a step without parts; silent where stderr is no terminal."""
    return console.status(label) if console.is_terminal else contextlib.nullcontext()

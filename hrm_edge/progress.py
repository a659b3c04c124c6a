"""Progress on stderr, so that stdout stays text a program can read."""

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

"""Bundles become text, without torch. `load` is the one entry."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Cancelled, Completion, Message, Model, Piece, load

__all__ = ["Cancelled", "Completion", "Message", "Model", "Piece", "load"]


def __getattr__(name: str) -> Any:
    """Import the engine on first use, so that `--help` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import engine

    return getattr(engine, name)

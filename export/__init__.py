"""Checkpoints become bundles. `export` is the one entry; a target is a file format."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert import export
    from .recipe import Recipe

__all__ = ["Recipe", "export"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `--help` stays quick."""
    if name == "export":
        from .convert import export

        return export
    if name == "Recipe":
        from .recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

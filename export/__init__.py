"""Checkpoints become bundles. `export` is the one entry; a target is a file format."""

from .convert import export
from .recipe import Recipe

__all__ = ["Recipe", "export"]

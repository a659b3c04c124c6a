"""Jinja for templates from strangers: its sandbox, with bounds on time and on what is made at once.

The sandbox keeps a template away from files and attributes, but lets it loop for hours and multiply
a text into gigabytes. Needs jinja2, so it is imported only where there is a template.
"""

import sys
import time
from collections.abc import Mapping, Sized
from types import FrameType
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0
LONGEST = 1 << 24  # characters or elements of what an operator makes
BITS = 1 << 12  # of a number that it makes


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses, by SecurityError, operators whose result would be huge."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left` operator `right`."""
        if _size(operator, left, right) > LONGEST or _bits(operator, left, right) > BITS:
            raise SecurityError(f"{operator} would make something huge")
        return super().call_binop(context, operator, left, right)


def render(template: Template, variables: Mapping[str, Any], seconds: float = SECONDS) -> str:
    """What `template` makes of `variables`.

    Raises SecurityError once that takes more than `seconds`, and whatever the template raises.
    """
    end = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise SecurityError(f"it takes more than {seconds:g} s")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)  # of this thread; called at every line of the compiled template
    try:
        return template.render(variables)
    finally:
        sys.settrace(before)


def _size(operator: str, left: Any, right: Any) -> int:
    """Characters or elements of the result, 0 if it is a number."""
    sizes = [len(x) for x in (left, right) if isinstance(x, Sized)]
    counts = [x for x in (left, right) if isinstance(x, int)]
    return sum(sizes) * max([1, *counts] if operator == "*" else [1])


def _bits(operator: str, left: Any, right: Any) -> int:
    """Bits of the result, 0 if it is no whole number."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return 0
    a, b = left.bit_length(), right.bit_length()
    return {"**": a * max(right, 0), "*": a + b}.get(operator, max(a, b))

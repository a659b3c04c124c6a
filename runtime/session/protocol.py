"""What every engine offers the layers above it."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hrm_edge.errors import HRMEdgeError


class Cancelled(HRMEdgeError):
    """An answer was ended from another thread."""


class Session(Protocol):
    """One sequence over one loaded model. `length` tokens are in the KV cache."""

    length: int
    max_context: int
    batches: bool  # several ids take less time in one call than one by one, and are the same
    kv_share: str  # which passes keep keys and values in one place, see Loading
    prefix: list[int]  # what is held of it was read in one call; [] before the first

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start anew with the bidirectional prefix `ids`; logits [V] of its last position."""
        ...

    def start(self, ids: Sequence[int], l_cycles: Sequence[int] | None = None) -> np.ndarray:
        """`prefill`, without computing anything where `ids` are the prefix that is held already.

        Later calls then run the passes of `plan(l_cycles)`.
        """
        ...

    def plan(self, l_cycles: Sequence[int] | None) -> tuple[bool, ...]:
        """Which passes an answer's tokens take with so many L passes in each H cycle.

        None: as loaded. Raises HRMEdgeError for a plan that this session cannot run.
        """
        ...

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append one or several ids, causally; logits [len(ids), V]."""
        ...

    def decode_rows(self, rows: Sequence[Any], tokens: Sequence[int]) -> np.ndarray:
        """Append a token to each of `rows`, sessions over one model; logits [len(rows), V].

        All in one call, where that is possible.
        """
        ...

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        ...

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        """The prefix's last logits [V] and the bytes of its cache, uint8 [n]."""
        ...

    def set_prefix_state(self, prefix: list[int], logits: np.ndarray, cache: np.ndarray) -> None:
        """Take over what `prefix_state` gave, as if `prefix` had just been read."""
        ...

    def cancel(self) -> None:
        """From another thread: end the call under way, which then raises Cancelled."""
        ...

"""Executes an ExecuTorch bundle: `prefill`, `decode` and `rewind` over a loaded .pte.

The rule of the program: a token attends to all before it and to all of its own call. So the first
call is the bidirectional prefix, and what follows is decoded one id at a time. The KV cache is part
of the program: all of it, for max_seq_len tokens, is committed when the program is loaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import PTE_MODEL
from hrm_edge.pte import Program

from .protocol import Cancelled
from .threads import default_threads


class ExecutorchSession:
    """One conversation's state over one loaded model. Not for use by several threads at once."""

    batches, kv_share = False, "none"

    def __init__(
        self, path: Path, manifest: Manifest, max_context: int, threads: int | None = None
    ) -> None:
        """Load the program of the bundle at `path` that holds `max_context` tokens.

        Raises HRMEdgeError if ExecuTorch lacks operators or refuses the program.
        """
        self.manifest, self.max_context, self.length = manifest, max_context, 0
        self._program = Program(path, manifest, max_context, threads or default_threads())
        self.prefix: list[int] = []
        self._prefix_logits = np.array([], np.float32)
        self._cancelled = False

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self.length, self.prefix, self._cancelled = 0, [], False
        self._prefix_logits = self._run(ids)
        self.prefix = list(ids)
        return self._prefix_logits

    def start(self, ids: Sequence[int], l_cycles: Sequence[int] | None = None) -> np.ndarray:
        """`prefill`, or a mere rewind where `ids` are the prefix that is held already."""
        self.plan(l_cycles)
        if self.prefix != list(ids):
            return self.prefill(ids)
        self.length, self._cancelled = len(self.prefix), False
        return self._prefix_logits

    def plan(self, l_cycles: Sequence[int] | None) -> tuple[bool, ...]:
        """All passes. Raises HRMEdgeError for anything else."""
        if l_cycles is not None:
            raise HRMEdgeError(
                "an ExecuTorch bundle runs all of its passes; l_cycles needs an ONNX bundle",
                "l_cycles",
            )
        return self.manifest.model.plan()

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally and one by one; logits [len(ids), V], float32."""
        assert self.length > 0, "decode before prefill"
        return np.stack([self._run([token]) for token in ids])

    def decode_rows(self, rows: Sequence["ExecutorchSession"], tokens: Sequence[int]) -> np.ndarray:
        """As Session says, of the one row that there is."""
        (row,) = rows
        return row.decode(tokens)

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        assert 0 <= n < self.length, (n, self.length)
        self.length -= n

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        """Raises HRMEdgeError: the cache lies inside ExecuTorch."""
        raise HRMEdgeError(
            f"{PTE_MODEL}: ExecuTorch does not give out its KV cache, so no prompt can be saved or "
            "restored; an ONNX bundle can"
        )

    def set_prefix_state(self, prefix: list[int], logits: np.ndarray, cache: np.ndarray) -> None:
        """Raises HRMEdgeError as `prefix_state`."""
        self.prefix_state()

    def cancel(self) -> None:
        """From another thread: the call under way, or the next decode, raises Cancelled.

        It does so once it is done: ExecuTorch cannot be interrupted.
        """
        self._cancelled = True

    def _run(self, ids: Sequence[int]) -> np.ndarray:
        total = self.length + len(ids)
        assert len(ids) > 0 and total <= self.max_context, (len(ids), total, self.max_context)
        logits = self._program(ids, self.length)
        if self._cancelled:
            self._cancelled = False
            raise Cancelled("the answer was cancelled")
        self.length = total
        return logits

"""What every engine offers the layers above it, and which engine runs which bundle."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from hrm_edge import memory
from hrm_edge.bundle import Bundle, Manifest
from hrm_edge.errors import HRMEdgeError

from .fit import largest_context, need


class Cancelled(HRMEdgeError):
    """An answer was ended from another thread."""


class Session(Protocol):
    """One sequence over one loaded model. `length` tokens are in the KV cache."""

    length: int
    max_context: int
    batches: bool  # several ids take less time in one call than one by one
    prefix: list[int]  # what is held of it was read in one call; [] before the first

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start anew with the bidirectional prefix `ids`; logits [V] of its last position."""
        ...

    def start(self, ids: Sequence[int]) -> np.ndarray:
        """`prefill`, without computing anything where `ids` are the prefix that is held already."""
        ...

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append one or several ids, causally; logits [len(ids), V]."""
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


def open_session(
    bundle: Bundle,
    threads: int | None,
    max_context: int | None,
    h_cycles: int | None = None,
    provider: str = "cpu",
    weight_cache: Path | None = None,
) -> Session:
    """A session over `bundle`. Raises HRMEdgeError if it cannot be run or does not fit.

    `h_cycles` is the number of H cycles to run, the first ones, if not all; `provider` is the
    short name of an ONNX Runtime execution provider; `weight_cache` a directory for packed weights.
    """
    bundle = at_depth(bundle, h_cycles)
    manifest = bundle.manifest
    length = _context(bundle, max_context, memory.available() if provider == "cpu" else None)
    if manifest.target == "onnx":
        from .session_onnx import OnnxSession

        return OnnxSession(bundle.path, manifest, length, threads, h_cycles, provider, weight_cache)
    if manifest.target == "executorch":
        from .session_executorch import ExecutorchSession

        if h_cycles is not None or provider != "cpu":
            raise HRMEdgeError(
                f"{bundle.path}: an ExecuTorch bundle runs all its cycles, and on the CPU; leave "
                "out --h-cycles and --provider, or export it with -t onnx"
            )
        length = max_context or _largest_program(manifest, memory.available())
        _context(bundle, manifest.context_for(length), memory.available())  # all is committed
        return ExecutorchSession(bundle.path, manifest, length, threads)
    raise HRMEdgeError(f"{bundle.path}: no session runs target {manifest.target!r}")


def at_depth(bundle: Bundle, h_cycles: int | None) -> Bundle:
    """`bundle` as it is with only `h_cycles` of its cycles: fewer bytes of cache a token."""
    most, cache = bundle.manifest.model.H_cycles, bundle.manifest.kv_cache
    if h_cycles is None:
        return bundle
    if not 1 <= h_cycles <= most:
        raise HRMEdgeError(f"h_cycles is {h_cycles}, expected 1 to {most} (the model's H_cycles)")
    cache = replace(cache, bytes_per_token=cache.bytes_per_token * h_cycles // most)
    return replace(bundle, manifest=replace(bundle.manifest, kv_cache=cache))


def _context(bundle: Bundle, asked: int | None, room: int | None) -> int:
    """The tokens to make room for: as asked, else all that the bundle allows and memory holds.

    `room` are the bytes that can be had, if that is known.
    """
    most, per_token = bundle.manifest.max_seq_len, bundle.manifest.kv_cache.bytes_per_token
    if asked is not None and not 2 <= asked <= most:
        raise HRMEdgeError(
            f"max_context is {asked}, expected 2 to {most} (the bundle's max_seq_len)"
        )
    if asked is None:
        return most if room is None else max(2, largest_context(bundle.manifest, room))
    fits = most if room is None else max(2, room // per_token)
    if asked > fits:
        wanted, have = asked * per_token / 2**30, (room or 0) / 2**30
        less = "fewer --kv-bits" if bundle.manifest.target == "onnx" else "--context"
        raise HRMEdgeError(
            f"max_context {asked} needs {wanted:.1f} GiB for its KV cache, {have:.1f} GiB are "
            f"available; at most {fits} fit ({less} at export needs less)"
        )
    return asked


def _largest_program(manifest: Manifest, room: int | None) -> int:
    """The longest context of an ExecuTorch bundle that fits into `room`, else its shortest."""
    contexts = (*manifest.contexts, manifest.max_seq_len)
    fitting = (n for n in contexts if room is None or need(manifest, n).total <= room)
    return max(fitting, default=contexts[0])

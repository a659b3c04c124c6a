"""Executes an ONNX bundle: `prefill`, `decode` and `rewind` over KV buffers written in place.

The rule of the graph: the first call is the bidirectional prefix, later calls are causal. Knows
token ids and logits; nothing of text, sampling or stopping.
"""

import ctypes
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError

from .session import Cancelled
from .threads import default_threads

LOGITS = "logits"


class OnnxSession:
    """One conversation's state over one loaded model. Not for use by several threads at once."""

    def __init__(
        self, path: Path, manifest: Manifest, max_context: int, threads: int | None = None
    ) -> None:
        """Load `path`/model.onnx with room for `max_context` tokens.

        Raises HRMEdgeError if ONNX Runtime refuses the model.
        """
        self.manifest, self.max_context, self.length = manifest, max_context, 0
        self._session = _load(path / "model.onnx", threads)
        self._cache = _Cache(manifest, max_context)
        self._binding = self._session.io_binding()
        self._cache.bind(self._binding)
        self._mask = np.ones((1, max_context), np.int64)
        self._running = ort.RunOptions()
        self.prefix: list[int] = []
        self._prefix_logits = np.array([], np.float32)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self.length, self.prefix = 0, []
        self._prefix_logits = self._run(ids, keep=1)[0]
        self.prefix = list(ids)
        return self._prefix_logits

    def start(self, ids: Sequence[int]) -> np.ndarray:
        """`prefill`, or a mere rewind where `ids` are the prefix that is held already."""
        if self.prefix != list(ids):
            return self.prefill(ids)
        self.length = len(self.prefix)
        return self._prefix_logits

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally; logits [len(ids), V], float32."""
        assert self.length > 0, "decode before prefill"
        return self._run(ids, keep=0)

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        assert 0 <= n < self.length, (n, self.length)
        self.length -= n

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        """The prefix's last logits [V] and its cache [2 * slots, heads, tokens, width], a view."""
        return self._prefix_logits, self._cache.view[:, :, : len(self.prefix)]

    def set_prefix_state(self, prefix: list[int], logits: np.ndarray, cache: np.ndarray) -> None:
        """Take over what `prefix_state` gave, as if `prefix` had just been read."""
        room = self._cache.view[:, :, : len(prefix)]
        assert (cache.shape, cache.dtype) == (room.shape, room.dtype), (cache.shape, room.shape)
        room[:] = cache
        self.prefix, self.length, self._prefix_logits = list(prefix), len(prefix), logits

    def cancel(self) -> None:
        """From another thread: end the call under way, which raises Cancelled; else nothing."""
        self._running.terminate = True

    def _run(self, ids: Sequence[int], keep: int) -> np.ndarray:
        total = self.length + len(ids)
        assert len(ids) > 0 and total <= self.max_context, (len(ids), total, self.max_context)
        self._binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        self._binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        # An optional input: the binding knows no NodeArg of that name and takes an OrtValue only.
        kept = ort.OrtValue.ortvalue_from_numpy(np.array([keep], np.int64))
        self._binding.bind_ortvalue_input("logits_to_keep", kept)
        self._binding.bind_output(LOGITS)
        self._compute()
        self.length = total
        return self._binding.get_outputs()[-1].numpy()[0]

    def _compute(self) -> None:
        self._running = ort.RunOptions()
        try:
            self._session.run_with_iobinding(self._binding, self._running)
        except Exception:  # onnxruntime's exceptions share no public base
            if self._running.terminate:
                raise Cancelled("the answer was cancelled") from None
            raise


class _Cache:
    """The KV buffers: one anonymous mapping, whose pages the system commits when first written."""

    def __init__(self, manifest: Manifest, max_context: int) -> None:
        model, cache = manifest.model, manifest.kv_cache
        width = model.head_dim // 2 if cache.bits == 4 else model.head_dim
        self.shape = (1, model.num_attention_heads, max_context, width)
        self.dtype = np.dtype(cache.dtype)
        self.slots = cache.slots
        self._buffer_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        try:
            self._memory = mmap.mmap(-1, 2 * self.slots * self._buffer_bytes)
        except (OSError, OverflowError) as error:
            size = 2 * self.slots * self._buffer_bytes / 2**30
            raise HRMEdgeError(
                f"a KV cache for {max_context} tokens takes {size:.1f} GiB, more than can be had "
                f"({error}); use a smaller max_context"
            ) from None
        self._array = np.frombuffer(self._memory, np.uint8)
        shape = (2 * self.slots, *self.shape[1:])
        self.view = self._array.view(self.dtype).reshape(
            shape
        )  # [2 * slots, heads, context, width]

    def bind(self, binding: ort.IOBinding) -> None:
        address = self._array.ctypes.data
        for slot in range(self.slots):
            for part in ("key", "value"):
                buffer = ("cpu", 0, self.dtype, self.shape, address)
                binding.bind_input(f"past_key_values.{slot}.{part}", *buffer)
                binding.bind_output(f"present.{slot}.{part}", *buffer)
                address += self._buffer_bytes


def _load(path: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or default_threads() or 0
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = str(error).strip().splitlines()[0]
        raise HRMEdgeError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load it ({reason})"
        ) from None
    _trim_heap()
    return session


def _trim_heap() -> None:
    """Return to the system what loading freed: the weights as they were before packing."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc; musl has none
            libc.malloc_trim(0)

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

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self.length = 0
        return self._run(ids, keep=1)[0]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally; logits [len(ids), V], float32."""
        assert self.length > 0, "decode before prefill"
        return self._run(ids, keep=0)

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        assert 0 <= n < self.length, (n, self.length)
        self.length -= n

    def _run(self, ids: Sequence[int], keep: int) -> np.ndarray:
        total = self.length + len(ids)
        assert len(ids) > 0 and total <= self.max_context, (len(ids), total, self.max_context)
        self._binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        self._binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        # An optional input: the binding knows no NodeArg of that name and takes an OrtValue only.
        kept = ort.OrtValue.ortvalue_from_numpy(np.array([keep], np.int64))
        self._binding.bind_ortvalue_input("logits_to_keep", kept)
        self._binding.bind_output(LOGITS)
        self._session.run_with_iobinding(self._binding)
        self.length = total
        return self._binding.get_outputs()[-1].numpy()[0]


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
    options.intra_op_num_threads = threads or 0
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

"""A loaded ONNX graph and the KV buffers of its rows: one call at a time.

The rule of the graph: a call without a past is a bidirectional prefix, of one row; later calls are
causal, several tokens of one row or one token of each of several rows.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort

from hrm_edge import names
from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError

from . import providers
from .huge_pages import huge_pages
from .kv_cache import kv_buffers
from .loading import CPU, Loading
from .protocol import Cancelled
from .threads import default_threads
from .weight_cache import packed_graph

SHRINK = "memory.enable_memory_arena_shrinkage"


class OnnxModel:
    """Runs stack passes on tokens of its rows. Not for use by several threads at once."""

    def __init__(self, path: Path, manifest: Manifest, max_context: int, loading: Loading) -> None:
        """Load `path`/model.onnx with room for `max_context` tokens in each of `loading.rows`.

        Raises HRMEdgeError if ONNX Runtime refuses the model or lacks the provider, or the graph
        has no rows.
        """
        provider, threads, rows = loading.provider, loading.threads, loading.rows or 1
        providers.check(provider, manifest)
        self.max_context, self._vocabulary = max_context, manifest.model.vocab_size
        graph = path / names.ONNX_MODEL
        if loading.weight_cache is not None:
            graph = _packed(graph, manifest, loading.weight_cache, threads, provider)
        self._session = _load(graph, threads, provider)
        _check_width(path, self._session, manifest)
        optional = [value.name for value in self._session.get_overridable_initializers()]
        self.flexible = names.PASSES in optional  # whether it can leave passes out
        if rows > 1 and self._session.get_inputs()[0].shape[0] == 1:
            raise HRMEdgeError(
                f"{path}: its graph has one row, not {rows}; export the checkpoint again", "rows"
            )
        kept = manifest.model.shared_slots(loading.kv_share)
        self.cache = kv_buffers(self._session, rows, max_context, provider, kept)
        self.sessions: WeakValueDictionary[int, Any] = WeakValueDictionary()  # by row
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._mask = np.zeros((rows, max_context), np.int64)
        self._running, self._on_cpu = _quiet_run(), provider == CPU

    def call(
        self, row: int, past: Sequence[int], ids: np.ndarray, plan: Sequence[bool], keep: int = 0
    ) -> np.ndarray:
        """Run the passes of `plan` on `ids` [n, S] of n rows from `row` on, behind `past` [n].

        Logits [n, kept, V], float32, of the last `keep` positions or all for 0. Raises Cancelled.
        """
        count, length = ids.shape
        most = max(past) + length
        assert length > 0 and most <= self.max_context, (length, most, self.max_context)
        assert count == 1 or length == 1 <= min(past), (count, length, past)
        binding, mask = self._binding(row, count), self._mask[:count, :most]
        for i, tokens in enumerate(past):
            mask[i] = np.arange(most) < tokens + length
        optional = {names.LOGITS_TO_KEEP: np.array([keep], np.int64)}
        if self.flexible:
            optional[names.PASSES] = np.array(plan)
        binding.bind_cpu_input(names.INPUT_IDS, np.ascontiguousarray(ids))
        binding.bind_cpu_input(names.ATTENTION_MASK, np.ascontiguousarray(mask))
        for name, array in optional.items():  # the binding has no NodeArg of them: OrtValues only
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        # into memory of ours: to ask the binding for its outputs would fetch the whole cache's too
        logits = np.empty((count, keep or length, self._vocabulary), np.float32)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._compute(binding, prefix=past[0] == 0)
        return logits

    def cancel(self) -> None:
        """From another thread: end the call under way, which raises Cancelled; else nothing."""
        self._running.terminate = True

    def _binding(self, row: int, count: int) -> ort.IOBinding:
        """The one for so many rows; to bind all of a cache takes longer than to keep it bound."""
        if (row, count) not in self._bindings:
            binding = self._session.io_binding()
            self.cache.bind(binding, row, count)
            self._bindings[row, count] = binding
        return self._bindings[row, count]

    def _compute(self, binding: ort.IOBinding, prefix: bool) -> None:
        self._running = _quiet_run()
        if prefix and self._on_cpu:  # what a long prompt took beside its cache is not needed again
            self._running.add_run_config_entry(SHRINK, "cpu:0")
        try:
            self._session.run_with_iobinding(binding, self._running)
        except Exception:  # onnxruntime's exceptions share no public base
            if self._running.terminate:
                raise Cancelled("the answer was cancelled") from None
            raise


def _quiet_run() -> ort.RunOptions:
    """For one call; ONNX Runtime does not print that it was cancelled."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


def _check_width(path: Path, session: ort.InferenceSession, manifest: Manifest) -> None:
    """Raise HRMEdgeError if the graph has another vocabulary than the manifest says."""
    (width,) = (out.shape[-1] for out in session.get_outputs() if out.name == names.LOGITS)
    if width != manifest.model.vocab_size:
        raise HRMEdgeError(
            f"{path / names.MANIFEST}: damaged manifest (model.vocab_size is "
            f"{manifest.model.vocab_size}, the graph's {width}); export again"
        )


def _load(path: Path, threads: int | None, provider: str) -> ort.InferenceSession:
    with huge_pages():
        with _refusing(path):
            session = providers.open_graph(str(path), _options(threads), provider)
        _trim_heap()
    return session


def _packed(
    path: Path, manifest: Manifest, directory: Path, threads: int | None, provider: str
) -> Path:
    if provider != CPU:
        raise HRMEdgeError(f"a weight cache is for provider cpu, not {provider}; turn it off")
    with _refusing(path):
        return packed_graph(path, manifest, directory, lambda: _options(threads))


def _options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or default_threads() or 0
    return options


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what ONNX Runtime raises over the graph at `path` into one line."""
    try:
        yield
    except (HRMEdgeError, KeyboardInterrupt):
        raise
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = str(error).strip().splitlines()[0]
        raise HRMEdgeError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load it ({reason})"
        ) from None


def _trim_heap() -> None:
    """Return to the system what loading freed: the weights as they were before packing."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc; musl has none
            libc.malloc_trim(0)

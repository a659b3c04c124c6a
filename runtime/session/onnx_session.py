"""Executes an ONNX bundle: `prefill`, `decode` and `rewind` over KV buffers written in place.

The rule of the graph: the first call is the bidirectional prefix, later calls are causal. Knows
token ids and logits; nothing of text, sampling or stopping.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hrm_edge import names
from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError

from . import providers
from .kv_cache import kv_buffers
from .loading import CPU, Loading
from .protocol import Cancelled
from .threads import default_threads
from .weight_cache import packed_graph

DEFAULT = Loading()


class OnnxSession:
    """One conversation's state over one loaded model. Not for use by several threads at once."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        max_context: int,
        loading: Loading = DEFAULT,
    ) -> None:
        """Load `path`/model.onnx with room for `max_context` tokens.

        Raises HRMEdgeError if ONNX Runtime refuses the model or lacks the provider, or the graph
        the depth that `loading` asks for.
        """
        provider, threads = loading.provider, loading.threads
        providers.check(provider, manifest)
        self.manifest, self.max_context, self.length = manifest, max_context, 0
        graph = path / names.ONNX_MODEL
        if loading.weight_cache is not None:
            graph = _packed(graph, manifest, loading.weight_cache, threads, provider)
        self._session = _load(graph, threads, provider)
        self.h_cycles = loading.h_cycles or manifest.model.H_cycles
        optional = [value.name for value in self._session.get_overridable_initializers()]
        self._flexible = names.H_CYCLES in optional
        if self.h_cycles < manifest.model.H_cycles and not self._flexible:
            raise HRMEdgeError(
                f"{path}: its graph always runs all {manifest.model.H_cycles} H cycles, not "
                f"{self.h_cycles}; export the checkpoint again"
            )
        self.kv_share = loading.kv_share
        self.batches = self.kv_share == "none"
        kept = manifest.model.shared_slots(self.kv_share)
        self._cache = kv_buffers(self._session, max_context, provider, kept)
        self._binding, self._drafting = self._bound(), self._bound()
        dtype = manifest.quantization.dtype
        self._drafted = _Drafted([], [np.empty((0, manifest.model.hidden_size), dtype)] * 2)
        self._mask = np.ones((1, max_context), np.int64)
        self._running = ort.RunOptions()
        self.prefix: list[int] = []
        self._prefix_logits = np.array([], np.float32)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self._move_to(0)
        self.prefix = []
        self._prefix_logits = self._run(ids, keep=1)[0]
        self.prefix = list(ids)
        return self._prefix_logits

    def start(self, ids: Sequence[int]) -> np.ndarray:
        """`prefill`, or a mere rewind where `ids` are the prefix that is held already."""
        if self.prefix != list(ids):
            return self.prefill(ids)
        self._move_to(len(self.prefix))
        return self._prefix_logits

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally; logits [len(ids), V], float32.

        Where passes share slots, one by one: within a call, a pass would see of the ids before it
        what it has put there itself, not what the last pass left.
        """
        assert self.length > 0, "decode before prefill"
        if self.batches:
            return self._run(ids, keep=0)
        return np.concatenate([self._run([token], keep=0) for token in ids])

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        assert 0 <= n < self.length, (n, self.length)
        self._move_to(self.length - n)

    @property
    def can_draft(self) -> bool:
        """Whether `draft` may be called: the graph can stop after the first of several cycles."""
        return self._flexible and self.h_cycles > 1 and self.batches

    def draft(self, ids: Sequence[int]) -> np.ndarray:
        """Read `ids`, behind those drafted before, through the first H cycle alone.

        Logits [len(ids), V] of the state it leaves. The next `decode` spares the drafted ids it
        begins with that cycle; the others are forgotten, as are all at a rewind.
        """
        assert self.can_draft and self.length > 0, (self.h_cycles, self.length)
        past = self.length + len(self._drafted.ids)
        inputs = self._depth(1, self._drafted.first(0))
        outputs = (names.LOGITS, *(names.FIRST + name for name in names.STATES))
        logits, *states = self._call(self._drafting, past, ids, inputs, outputs)
        self._drafted = self._drafted.then(ids, states)
        return logits

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        """The prefix's last logits [V] and the bytes of its cache, uint8 [n]."""
        return self._prefix_logits, self._cache.read(len(self.prefix))

    def set_prefix_state(self, prefix: list[int], logits: np.ndarray, cache: np.ndarray) -> None:
        """Take over what `prefix_state` gave, as if `prefix` had just been read."""
        self._cache.write(cache, len(prefix))
        self.prefix, self._prefix_logits = list(prefix), logits
        self._move_to(len(prefix))

    def cancel(self) -> None:
        """From another thread: end the call under way, which raises Cancelled; else nothing."""
        self._running.terminate = True

    def _move_to(self, length: int) -> None:
        self.length, self._drafted = length, self._drafted.none()

    def _run(self, ids: Sequence[int], keep: int) -> np.ndarray:
        inputs = {names.LOGITS_TO_KEEP: np.array([keep], np.int64)}
        inputs |= self._depth(self.h_cycles, self._drafted.shared_with(ids))
        (logits,) = self._call(self._binding, self.length, ids, inputs, (names.LOGITS,))
        self._move_to(self.length + len(ids))
        return logits

    def _depth(self, h_cycles: int, drafted: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The optional inputs of a graph of flexible depth; `drafted` states [P, D]."""
        if not self._flexible:
            return {}
        states = {names.DRAFTED + n: z[None] for n, z in zip(names.STATES, drafted, strict=True)}
        return {names.H_CYCLES: np.array([h_cycles], np.int64)} | states

    def _bound(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        self._cache.bind(binding)
        return binding

    def _call(
        self,
        binding: ort.IOBinding,
        past: int,
        ids: Sequence[int],
        optional: dict[str, np.ndarray],
        outputs: Sequence[str],
    ) -> list[np.ndarray]:
        """Run `ids` behind `past` tokens; what the graph gives as `outputs`, without its batch."""
        total = past + len(ids)
        assert len(ids) > 0 and total <= self.max_context, (len(ids), total, self.max_context)
        binding.bind_cpu_input(names.INPUT_IDS, np.array([ids], np.int64))
        binding.bind_cpu_input(names.ATTENTION_MASK, self._mask[:, :total])
        for name, array in optional.items():  # the binding has no NodeArg of them: OrtValues only
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name in outputs:
            binding.bind_output(name)
        self._compute(binding)
        return [value.numpy()[0] for value in binding.get_outputs()[-len(outputs) :]]

    def _compute(self, binding: ort.IOBinding) -> None:
        self._running = ort.RunOptions()
        try:
            self._session.run_with_iobinding(binding, self._running)
        except Exception:  # onnxruntime's exceptions share no public base
            if self._running.terminate:
                raise Cancelled("the answer was cancelled") from None
            raise


@dataclass(frozen=True)
class _Drafted:
    """Ids behind the sequence that went through the first H cycle alone, and its states [n, D]."""

    ids: list[int]
    states: list[np.ndarray]  # z_H, z_L

    def first(self, count: int) -> list[np.ndarray]:
        """The states of the first `count` ids."""
        return [state[:count] for state in self.states]

    def none(self) -> "_Drafted":
        """Nothing drafted."""
        return _Drafted([], self.first(0))

    def then(self, ids: Sequence[int], states: list[np.ndarray]) -> "_Drafted":
        """These and `ids` with `states` behind them."""
        joined = [np.concatenate(pair) for pair in zip(self.states, states, strict=True)]
        return _Drafted([*self.ids, *ids], joined)

    def shared_with(self, ids: Sequence[int]) -> list[np.ndarray]:
        """The states of what `ids` begin with; one id at least is left for the graph to read."""
        same = 0
        while same < min(len(self.ids), len(ids) - 1) and self.ids[same] == ids[same]:
            same += 1
        return self.first(same)


def _load(path: Path, threads: int | None, provider: str) -> ort.InferenceSession:
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

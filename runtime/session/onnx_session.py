"""Executes an ONNX bundle: `prefill`, `decode` and `rewind` over KV buffers written in place.

The rule of the graph: the first call is the bidirectional prefix, later calls are causal. Knows
token ids and logits; nothing of text, sampling or stopping.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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

DEFAULT = Loading()
SHRINK = "memory.enable_memory_arena_shrinkage"


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
        _check_width(path, self._session, manifest)
        optional = [value.name for value in self._session.get_overridable_initializers()]
        self._flexible = names.PASSES in optional
        plan_of = manifest.model.plan
        self._h_cycles = cycles = loading.h_cycles or manifest.model.H_cycles
        self._usual = self._plan = plan_of(loading.l_cycles, cycles)
        self._shallow = plan_of([1] * cycles, cycles)  # what drafts
        if not (self._flexible or all(self._usual)):
            raise _rigid(str(path), self._usual)
        self.kv_share = loading.kv_share
        self.batches = self.kv_share == "none"
        kept = manifest.model.shared_slots(self.kv_share)
        self._cache = kv_buffers(self._session, max_context, provider, kept)
        self._binding = self._session.io_binding()
        self._cache.bind(self._binding)
        self._drafted = 0  # tokens behind `length` that `draft` has read
        self._mask = np.ones((1, max_context), np.int64)
        self._running, self._on_cpu = _quiet_run(), provider == CPU
        self.prefix: list[int] = []
        self._prefix_logits = np.array([], np.float32)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self._move_to(0)
        self.prefix, self._plan = [], self._usual
        self._prefix_logits = self._run(ids, keep=1)[0]
        self.prefix = list(ids)
        return self._prefix_logits

    def start(self, ids: Sequence[int], l_cycles: Sequence[int] | None = None) -> np.ndarray:
        """`prefill`, or a mere rewind where `ids` are the prefix that is held already.

        Later calls then run `l_cycles` L passes of each H cycle, see HRMTextConfig.plan.
        """
        plan = self.plan(l_cycles)
        if self.prefix != list(ids):
            self.prefill(ids)
        self._move_to(len(self.prefix))
        self._plan = plan
        return self._prefix_logits

    def plan(self, l_cycles: Sequence[int] | None) -> tuple[bool, ...]:
        """As Session says."""
        if l_cycles is None:
            return self._usual
        plan = self.manifest.model.plan(l_cycles, self._h_cycles)
        if not (self._flexible or all(plan)):
            raise _rigid("this bundle", plan)
        return plan

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
        """Whether `draft` may be called: the graph can leave passes out, and has some to leave."""
        return self._flexible and self.batches and self._usual != self._shallow

    def draft(self, ids: Sequence[int]) -> np.ndarray:
        """Read `ids`, behind those drafted before, through the last L pass of each H cycle alone.

        Logits [len(ids), V]. What that leaves in the cache, `decode` overwrites: it, a rewind and a
        new prefix forget all drafts.
        """
        assert self.can_draft and self.length > 0, (self._plan, self.length)
        logits = self._call(self.length + self._drafted, ids, self._shallow, keep=0)
        self._drafted += len(ids)
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
        self.length, self._drafted = length, 0

    def _run(self, ids: Sequence[int], keep: int) -> np.ndarray:
        logits = self._call(self.length, ids, self._plan, keep)
        self._move_to(self.length + len(ids))
        return logits

    def _call(self, past: int, ids: Sequence[int], plan: tuple[bool, ...], keep: int) -> np.ndarray:
        """Run the passes of `plan` on `ids` behind `past` tokens; logits [kept, V]."""
        total, binding = past + len(ids), self._binding
        assert len(ids) > 0 and total <= self.max_context, (len(ids), total, self.max_context)
        optional = {names.LOGITS_TO_KEEP: np.array([keep], np.int64)}
        if self._flexible:
            optional[names.PASSES] = np.array(plan)
        binding.bind_cpu_input(names.INPUT_IDS, np.array([ids], np.int64))
        binding.bind_cpu_input(names.ATTENTION_MASK, self._mask[:, :total])
        for name, array in optional.items():  # the binding has no NodeArg of them: OrtValues only
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        # into memory of ours: to ask the binding for its outputs would fetch the whole cache's too
        logits = np.empty((1, keep or len(ids), self.manifest.model.vocab_size), np.float32)
        binding.bind_output(names.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._compute(prefix=past == 0)
        return logits[0]

    def _compute(self, prefix: bool) -> None:
        self._running = _quiet_run()
        if prefix and self._on_cpu:  # what a long prompt took beside its cache is not needed again
            self._running.add_run_config_entry(SHRINK, "cpu:0")
        try:
            self._session.run_with_iobinding(self._binding, self._running)
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


def _rigid(which: str, plan: Sequence[bool]) -> HRMEdgeError:
    return HRMEdgeError(
        f"{which}: its graph always runs all {len(plan)} passes, not {sum(plan)} of them; export "
        "the checkpoint again"
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

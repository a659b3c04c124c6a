"""Executes an ExecuTorch bundle: `prefill`, `decode` and `rewind` over a loaded .pte.

The rule of the program: a token attends to all before it and to all of its own call. So the first
call is the bidirectional prefix, and what follows is decoded one id at a time. The KV cache is part
of the program: all of it, for max_seq_len tokens, is committed when the program is loaded.
"""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError
from hrm_edge.quiet import quiet_imports

from .session import Cancelled
from .threads import default_threads

MODEL = "model.pte"
OPERATORS = {  # beyond ExecuTorch's own -> the module whose import registers them
    "llama::custom_sdpa.out": "executorch.extension.llm.custom_ops.custom_ops",
    "llama::update_cache.out": "executorch.extension.llm.custom_ops.custom_ops",
    "quantized_decomposed::embedding_4bit.out": "executorch.kernels.quantized",
    "quantized_decomposed::embedding_byte.out": "executorch.kernels.quantized",
}
CHATTER = ("cpuinfo_utils.cpp", "threadpool.cpp")  # logs on every load, of no use to anyone


class ExecutorchSession:
    """One conversation's state over one loaded model. Not for use by several threads at once."""

    batches = False

    def __init__(
        self, path: Path, manifest: Manifest, max_context: int, threads: int | None = None
    ) -> None:
        """Load `path`/model.pte, to be used for `max_context` tokens.

        Raises HRMEdgeError if ExecuTorch lacks operators or refuses the program.
        """
        self.manifest, self.max_context, self.length = manifest, max_context, 0
        self._program, self._method = _load(path / MODEL, manifest, "forward", threads)
        self._tensor: Any = importlib.import_module("torch").tensor
        self.prefix: list[int] = []
        self._prefix_logits = np.array([], np.float32)
        self._cancelled = False

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self.length, self.prefix, self._cancelled = 0, [], False
        self._prefix_logits = self._run(ids)
        self.prefix = list(ids)
        return self._prefix_logits

    def start(self, ids: Sequence[int]) -> np.ndarray:
        """`prefill`, or a mere rewind where `ids` are the prefix that is held already."""
        if self.prefix != list(ids):
            return self.prefill(ids)
        self.length, self._cancelled = len(self.prefix), False
        return self._prefix_logits

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally and one by one; logits [len(ids), V], float32."""
        assert self.length > 0, "decode before prefill"
        return np.stack([self._run([token]) for token in ids])

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        assert 0 <= n < self.length, (n, self.length)
        self.length -= n

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        """Raises HRMEdgeError: the cache lies inside ExecuTorch."""
        raise HRMEdgeError(
            f"{MODEL}: ExecuTorch does not give out its KV cache, so no prompt can be saved or "
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
        tokens, start = self._tensor([list(ids)]), self._tensor([self.length])
        (logits,) = self._method.execute((tokens, start))
        if self._cancelled:
            self._cancelled = False
            raise Cancelled("the answer was cancelled")
        self.length = total
        return logits.numpy()[0]


def _load(path: Path, manifest: Manifest, name: str, threads: int | None) -> tuple[Any, Any]:
    """The program and its loaded entry point `name`."""
    runtime, library = _executorch()
    missing = [o for o in OPERATORS if o not in runtime.operator_registry.operator_names]
    if missing:
        raise HRMEdgeError(
            f"{path}: {missing[0]} is missing, which import {OPERATORS[missing[0]]} should bring; "
            f"this executorch {version('executorch')} was built without it: "
            "pip install --force-reinstall 'hrm-edge[executorch]'"
        )
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with _output_to(log):
                library._unsafe_reset_threadpool(threads or default_threads() or os.cpu_count())
                program = runtime.load_program(path)
                return program, program.load_method(name)
        except (RuntimeError, KeyError) as error:
            made = manifest.made_by.get("executorch", "an unknown version")
            raise HRMEdgeError(
                f"{path}: ExecuTorch {version('executorch')} cannot load what {made} made "
                f"({_first_complaint(log) or error}); export the checkpoint again"
            ) from None


def _executorch() -> tuple[Any, Any]:
    """ExecuTorch's runtime and its library, with the operators of OPERATORS registered."""
    with quiet_imports():  # torchao warns of GPU kernels that it lacks
        runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
        library: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        for module in dict.fromkeys(OPERATORS.values()):
            importlib.import_module(module)
    return runtime, library


@contextlib.contextmanager
def _output_to(log: IO[str]) -> Iterator[None]:
    """Send what Python and C++ print inside the block to `log`."""
    streams = (1, 2)
    kept = [os.dup(stream) for stream in streams]
    try:
        for stream in streams:
            os.dup2(log.fileno(), stream)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
        log.flush()
    finally:
        for stream, copy in zip(streams, kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _first_complaint(log: IO[str]) -> str:
    """The first line of `log` that says something."""
    log.seek(0)
    lines = log.read().splitlines()
    return next((line for line in lines if not any(word in line for word in CHATTER)), "")

"""Loads a .pte into ExecuTorch's Python runtime and calls it, without a word on stdout.

What a program needs beyond ExecuTorch's own operators comes from imports (OPERATORS) or, for
operators of one's own, from the shared library that the environment variable LIBRARY names.
"""

import contextlib
import ctypes
import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import PTE_DATA, program
from hrm_edge.quiet import quiet_imports

OPERATORS = {  # beyond ExecuTorch's own -> the module whose import registers them
    "llama::custom_sdpa.out": "executorch.extension.llm.custom_ops.custom_ops",
    "llama::update_cache.out": "executorch.extension.llm.custom_ops.custom_ops",
    "quantized_decomposed::embedding_4bit.out": "executorch.kernels.quantized",
    "quantized_decomposed::embedding_byte.out": "executorch.kernels.quantized",
}
LIBRARY = "HRM_EDGE_OPERATORS"
MAGIC_NORM = "hrm::magic_norm.out"  # of export/to_executorch/magic_norm.cpp
CHATTER = ("cpuinfo_utils.cpp", "threadpool.cpp")  # logs on every load, of no use to anyone


class Unavailable(HRMEdgeError):
    """A program is in order, but what it needs to run is not here."""


class Program:
    """`forward(tokens [1, S], start_pos [1]) -> logits [1, V]` of one loaded .pte."""

    def __init__(
        self, directory: Path, manifest: Manifest, tokens: int, threads: int | None
    ) -> None:
        """Load the program of a bundle whose KV cache holds `tokens`, to be run by `threads`.

        Raises HRMEdgeError if ExecuTorch lacks operators or refuses the program.
        """
        path = directory / program(manifest.context_for(tokens), manifest.max_seq_len)
        data = directory / PTE_DATA if manifest.contexts else None
        made_by = manifest.made_by.get("executorch", "an unknown version")
        self._module = _load(path, data, made_by, threads or os.cpu_count() or 1)

    def __call__(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Append `ids` to the first `start` tokens; logits [V] of the last one, float32."""
        return _forward(self._module, ids, start)


def _load(path: Path, data: Path | None, made_by: str, threads: int) -> Any:
    """The loaded module."""
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
                library._unsafe_reset_threadpool(threads)
                runtime.load_program(path)  # verifies it, which the next line does not
                module = library._load_for_executorch(str(path), data and str(data))
                _forward(module, [0], 0)  # the first call loads the method and packs the weights
                return module
        except (RuntimeError, KeyError) as error:
            log.seek(0)
            raise _failure(path, log.read(), error, made_by) from None


def _forward(module: Any, ids: Sequence[int], start: int) -> np.ndarray:
    tensor: Any = importlib.import_module("torch").tensor
    (logits,) = module.run_method("forward", (tensor([list(ids)]), tensor([start])))
    return logits.numpy()[0]


def _executorch() -> tuple[Any, Any]:
    """ExecuTorch's runtime and its library, with all operators registered that can be had."""
    with quiet_imports():  # torchao warns of GPU kernels that it lacks
        runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
        library: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        for module in dict.fromkeys(OPERATORS.values()):
            importlib.import_module(module)
    own = os.environ.get(LIBRARY)
    if own:
        try:
            ctypes.CDLL(str(Path(own).absolute()))
        except OSError as error:
            raise HRMEdgeError(f"{LIBRARY} is {own!r}, which cannot be loaded: {error}") from None
    return runtime, library


def _failure(path: Path, log: str, error: Exception, made_by: str) -> HRMEdgeError:
    """Why the program could not be loaded, from what ExecuTorch printed."""
    found = re.search(r"[Mm]issing operator: \[\d+\] (\S+)", log)
    if found and found[1] == MAGIC_NORM:
        return Unavailable(
            f"{path}: {MAGIC_NORM} is missing; build its library (python -m "
            "hrm_edge.export.to_executorch.magic_norm_op -o FILE) and name it in the environment: "
            f"{LIBRARY}=FILE"
        )
    if found:
        return Unavailable(
            f"{path}: {found[1]} is missing; name a library that has it in the environment: "
            f"{LIBRARY}=FILE"
        )
    complaint = next((s for s in log.splitlines() if not any(word in s for word in CHATTER)), error)
    return HRMEdgeError(
        f"{path}: ExecuTorch {version('executorch')} cannot load what {made_by} made "
        f"({complaint}); export the checkpoint again"
    )


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

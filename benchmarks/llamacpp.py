"""Drives the prebuilt llama.cpp of the npm package node-llama-cpp through its C interface.

    cd benchmarks && npm ci --ignore-scripts       # once: fetches the shared library

`Llama` gives logits of every position and bidirectional attention for one call. The structures
below are those of llama.h at tag v0.5.0, so the library's release is checked.
"""

import ctypes as c
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hrm_edge.errors import HRMEdgeError

RELEASE = "v0.5.0"
FOLDER_VARIABLE = "HRM_EDGE_LLAMACPP"  # the folder that holds libllama, instead of node_modules
CPUS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
P = c.c_void_p


class ModelParams(c.Structure):
    """llama_model_params."""

    _fields_ = [
        *((name, P) for name in ("devices", "tensor_buft_overrides")),
        *((n, c.c_int) for n in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode")),
        ("main_gpu", c.c_int),
        *((n, P) for n in ("tensor_split", "progress_callback", "progress_data", "kv_overrides")),
        *((n, c.c_bool) for n in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((n, c.c_bool) for n in ("no_host", "no_alloc", "load_mtp")),
    ]


class ContextParams(c.Structure):
    """llama_context_params."""

    _fields_ = [
        *((n, c.c_uint32) for n in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((n, c.c_uint32) for n in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((n, c.c_int) for n in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((n, c.c_int) for n in ("pooling_type", "attention_type", "flash_attn_type")),
        *((n, c.c_float) for n in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((n, c.c_float) for n in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        *((n, P) for n in ("cb_eval", "cb_eval_data")),
        *((n, c.c_int) for n in ("type_k", "type_v")),
        *((n, P) for n in ("abort_callback", "abort_data")),
        *((n, c.c_bool) for n in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
        *((n, c.c_bool) for n in ("swa_full", "kv_unified")),
        ("samplers", P),
        ("n_samplers", c.c_size_t),
        ("ctx_other", P),
    ]


class Batch(c.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        *((n, P) for n in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    ]


LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, P)
CALLBACKS: list[Any] = []  # ctypes frees a callback that nothing refers to
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [LogCallback, P]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (P, [c.c_char_p, ModelParams]),
    "llama_init_from_model": (P, [P, ContextParams]),
    "llama_model_get_vocab": (P, [P]),
    "llama_vocab_n_tokens": (c.c_int32, [P]),
    "llama_vocab_eos": (c.c_int32, [P]),
    "llama_get_memory": (P, [P]),
    "llama_memory_clear": (None, [P, c.c_bool]),
    "llama_memory_seq_rm": (c.c_bool, [P, c.c_int32, c.c_int32, c.c_int32]),
    "llama_set_causal_attn": (None, [P, c.c_bool]),
    "llama_decode": (c.c_int32, [P, Batch]),
    "llama_get_logits": (c.POINTER(c.c_float), [P]),
    "llama_tokenize": (
        c.c_int32,
        [P, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_free": (None, [P]),
    "llama_model_free": (None, [P]),
}


class Llama:
    """A sequence over one loaded GGUF file, or several, on the CPU."""

    def __init__(
        self,
        path: Path,
        context: int = 512,
        threads: int | None = None,
        kv: str = "f16",
        flash: str = "auto",
        batch: int = 512,
        rows: int = 1,
    ) -> None:
        """Load `path` with room for `context` tokens in each of `rows`; `batch` tokens at once.

        `kv` is one of KV_TYPES, `flash` one of FLASH_ATTENTION. Raises HRMEdgeError with
        llama.cpp's own last words if it refuses the file.
        """
        self._api, self._messages = library()
        self._messages.clear()
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        self._context: int | None = None
        self._model = self._api.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            said = "; ".join(self._messages) or "no reason given"
            raise HRMEdgeError(f"{path}: llama.cpp {RELEASE} cannot load it ({said})")
        threads = threads or os.cpu_count() or 1
        self._rows = rows
        self._context = self._new_context(context, threads, KV_TYPES[kv], flash, batch)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.vocab_size: int = self._api.llama_vocab_n_tokens(self._vocab)
        self.eos: int = self._api.llama_vocab_eos(self._vocab)
        self.max_context, self.batch, self.length = context, batch, 0

    def prefill(self, ids: Sequence[int], causal: bool | None = None) -> np.ndarray:
        """Forget everything and read `ids`; logits [V] of the last position.

        `causal` None keeps to what the file says, for this call and later ones; else it holds for
        this call, and later ones are causal. A bidirectional prompt must fit `batch`.
        """
        self.rewind(0)
        if causal is not None:
            self._api.llama_set_causal_attn(self._context, causal)
        logits = [self._run(ids[i : i + self.batch], False) for i in range(0, len(ids), self.batch)]
        if causal is not None:
            self._api.llama_set_causal_attn(self._context, True)
        return logits[-1][0]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids` (at most `batch`), causally; logits [len(ids), V], float32."""
        return self._run(ids, True)

    def read_row(self, row: int, ids: Sequence[int]) -> np.ndarray:
        """Forget what `row` holds and read `ids` into it, causally; logits [V] of the last one."""
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), row, 0, -1)
        logits = []
        for start in range(0, len(ids), self.batch):
            part = ids[start : start + self.batch]
            places = range(start, start + len(part))
            logits.append(self._compute(part, places, [row] * len(part), 1))
        return logits[-1][0]

    def decode_rows(self, tokens: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        """A token for each of the first rows, which hold `lengths` tokens; logits [rows, V]."""
        return self._compute(tokens, lengths, range(len(tokens)), len(tokens))

    def rewind(self, length: int) -> None:
        """Forget all tokens past the first `length`; 0 forgets everything."""
        assert 0 <= length <= max(self.length, 0), (length, self.length)
        memory = self._api.llama_get_memory(self._context)
        if length:
            assert self._api.llama_memory_seq_rm(memory, 0, length, -1)
        else:
            self._api.llama_memory_clear(memory, False)
        self.length = length

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, spelled special tokens becoming their ids; adds none of its own."""
        raw = text.encode()
        ids = (c.c_int32 * (len(raw) + 8))()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, True)
        assert count >= 0, (count, len(raw))
        return list(ids[:count])

    def close(self) -> None:
        """Free model and context."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_context(self, context: int, threads: int, kv: int, flash: str, batch: int) -> int:
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self._rows * context, batch, batch
        params.n_seq_max, params.kv_unified = self._rows, False
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = kv
        params.flash_attn_type = FLASH_ATTENTION[flash]
        params.no_perf = True
        made = self._api.llama_init_from_model(self._model, params)
        if not made:
            said = "; ".join(self._messages) or "no reason given"
            self.close()
            raise HRMEdgeError(f"llama.cpp cannot make a context of {context} tokens ({said})")
        return made

    def _run(self, ids: Sequence[int], every: bool) -> np.ndarray:
        n = len(ids)
        assert 0 < n <= self.batch and self.length + n <= self.max_context, (n, self.length)
        places = range(self.length, self.length + n)
        logits = self._compute(ids, places, [0] * n, n if every else 1)
        self.length += n
        return logits

    def _compute(
        self, ids: Sequence[int], places: Sequence[int], rows: Sequence[int], kept: int
    ) -> np.ndarray:
        """Logits [kept, V] of the last `kept` of `ids`, each at its place in its row."""
        n = len(ids)
        sequences = [(c.c_int32 * 1)(row) for row in rows]
        arrays = (
            (c.c_int32 * n)(*ids),
            None,
            (c.c_int32 * n)(*places),
            (c.c_int32 * n)(*([1] * n)),
            (P * n)(*map(c.addressof, sequences)),
            (c.c_int8 * n)(*([0] * (n - kept) + [1] * kept)),
        )
        pointers = [c.cast(a, P) if a is not None else None for a in arrays]
        code = self._api.llama_decode(self._context, Batch(n, *pointers))
        if code:
            raise RuntimeError(f"llama_decode returned {code}: {'; '.join(self._messages)}")
        logits = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (kept, self.vocab_size)).copy()


@cache
def library() -> tuple[Any, list[str]]:
    """llama.cpp's functions, and the list that its warnings and errors are appended to.

    Raises HRMEdgeError if the library is not installed or of another release.
    """
    folder = library_folder()
    for name in ("libggml-base.so", f"libggml.{RELEASE}.so"):
        backends = c.CDLL(str(folder / name), mode=c.RTLD_GLOBAL)
    api = c.CDLL(str(folder / f"libllama.{RELEASE}.so"))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(api, name)
        function.restype, function.argtypes = result, arguments
    messages: list[str] = []

    @LogCallback
    def log(level: int, text: bytes, _: int) -> None:
        if level >= 3:  # GGML_LOG_LEVEL_WARN
            messages.append(text.decode(errors="replace").strip())

    api.llama_log_set(log, None)
    CALLBACKS.append(log)
    backends.ggml_backend_load_all_from_path.argtypes = [c.c_char_p]
    backends.ggml_backend_load_all_from_path(os.fsencode(folder))
    return api, messages


def library_folder() -> Path:
    """The folder of libllama: $HRM_EDGE_LLAMACPP, or the npm package beside this file."""
    kind = CPUS.get(platform.machine(), f"linux-{platform.machine()}")
    package = Path(__file__).parent / "node_modules" / "@node-llama-cpp" / kind / "bins" / kind
    folder = Path(os.environ.get(FOLDER_VARIABLE) or package)
    if not (folder / f"libllama.{RELEASE}.so").is_file():
        raise HRMEdgeError(
            f"{folder}: no libllama.{RELEASE}.so; run 'npm ci --ignore-scripts' in "
            f"{Path(__file__).parent}, or set {FOLDER_VARIABLE} to the folder that holds it"
        )
    return folder

"""A GGUF file of this architecture, opened as a checkpoint that any target can be made from.

Tensors are read one at a time from the mapped file. Blocks of Q4_0 and Q8_0 can be had as they are:
their codes and scales mean the same in ONNX Runtime's MatMulNBits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, ReaderTensor, quants

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError

from ..targets import GGML_BLOCK
from .blocks import q4_0_codes, q8_0_codes
from .tokenizer import NORMAL, PROMPT_TEMPLATE, GGUFTokenizer, known_names
from .write import ARCHITECTURE, tensor_names

READABLE = (
    *(Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0),
    *(Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K),
)
CODES = {Q.Q4_0: (4, q4_0_codes), Q.Q8_0: (8, q8_0_codes)}
ROWS = 4096  # dequantized at once
UNREADABLE = (ValueError, IndexError, KeyError, OverflowError, OSError, MemoryError, RecursionError)
KEYS = {  # hub's config.json -> key below `hrm_text.`
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "hrm.layers_per_stack",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "H_cycles": "hrm.h_cycles",
    "L_cycles": "hrm.l_cycles",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "embedding_scale": "embedding_scale",
    "prefix_lm": "hrm.prefix_lm",
}
# What the patches wrote that went round before llama.cpp had the architecture.
OLD_KEYS = ("layers_per_stack", "h_cycles", "l_cycles", "prefix_lm")


@dataclass(frozen=True)
class GGUFCheckpoint(Checkpoint):
    """A checkpoint whose tensors lie in one GGUF file. `path` holds the tokenizer's files."""

    source: Path
    tensors: dict[str, ReaderTensor]

    def float32(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of tensor `name` as float32. Raises HRMEdgeError if a value is NaN or infinite."""
        try:
            return super().float32(name, rows)
        except HRMEdgeError as error:
            raise HRMEdgeError(str(error).replace(str(self.path), str(self.source), 1)) from None

    def codes(self, name: str, bits: int, group_size: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The stored codes and scales of `name` if they are of `bits` and `group_size`."""
        stored = [self.tensors[part] for part in self.parts[name]]
        kinds = {t.tensor_type for t in stored}
        known, unpack = CODES.get(kinds.pop(), (0, None)) if len(kinds) == 1 else (0, None)
        if (known, GGML_BLOCK) != (bits, group_size) or unpack is None:
            return None
        pieces = [unpack(np.asarray(t.data)) for t in stored]
        codes = np.concatenate([p.codes for p in pieces])
        return codes, np.concatenate([p.scales for p in pieces])

    def _stored(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        tensor = self.tensors[name]
        data = tensor.data[rows]
        values = np.empty((len(data), *_shape(tensor)[1:]), np.float32)
        for start in range(0, len(data), ROWS):
            part = slice(start, start + ROWS)
            values[part] = quants.dequantize(np.asarray(data[part]), tensor.tensor_type)
        return values


def open_gguf(path: Path, scratch: Path) -> GGUFCheckpoint:
    """Open `path`, writing its tokenizer as Hugging Face files into the directory `scratch`.

    Raises HRMEdgeError if the file is damaged, of another architecture, written with the keys used
    before llama.cpp's release, or holds types or tensors that cannot be read.
    """
    reader = _reader(path)
    fields, tensors = reader.fields, {t.name: t for t in reader.tensors}
    config = _config(fields, tensors, path)
    parts = tensor_names(config)
    _check(config, parts, tensors, path)
    _tokenizer(fields, path).write(scratch, config)
    return GGUFCheckpoint(scratch, config, parts, {}, path, tensors)


def _reader(path: Path) -> GGUFReader:
    if not path.is_file():
        raise HRMEdgeError(f"{path}: no such file")
    try:
        return GGUFReader(path)
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise HRMEdgeError(
            f"{path}: not a GGUF file, damaged or truncated ({reason}); download it again"
        ) from None


def _tokenizer(fields: dict[str, Any], path: Path) -> GGUFTokenizer:
    model = _value(fields, "tokenizer.ggml.model")
    pre, tokens = (_value(fields, f"tokenizer.ggml.{key}") for key in ("pre", "tokens"))
    if model != "gpt2" or pre not in known_names() or not tokens:
        known = ", ".join(known_names())
        raise HRMEdgeError(
            f"{path}: its tokenizer is {model!r} split as {pre!r}, expected 'gpt2' with {known}"
        )
    return GGUFTokenizer(
        pre=pre,
        tokens=tuple(tokens),
        types=tuple(_value(fields, "tokenizer.ggml.token_type") or [NORMAL] * len(tokens)),
        merges=tuple(_value(fields, "tokenizer.ggml.merges", ())),
        chat_template=_value(fields, "tokenizer.chat_template") or PROMPT_TEMPLATE,
    )


def _value(fields: dict[str, Any], key: str, default: Any = None) -> Any:
    return fields[key].contents() if key in fields else default


def _config(fields: dict[str, Any], tensors: dict[str, Any], path: Path) -> HRMTextConfig:
    found = _value(fields, "general.architecture")
    if found != ARCHITECTURE:
        raise HRMEdgeError(f"{path}: its architecture is {found!r}, expected {ARCHITECTURE!r}")
    old = [k for k in OLD_KEYS if f"{ARCHITECTURE}.{k}" in fields]
    if old:
        raise HRMEdgeError(
            f"{path}: written before llama.cpp had this architecture ({ARCHITECTURE}.{old[0]} is "
            f"now {ARCHITECTURE}.hrm.{old[0]}); export the original checkpoint again"
        )
    raw = {ours: _value(fields, f"{ARCHITECTURE}.{key}") for ours, key in KEYS.items()}
    embedding = tensors.get("token_embd.weight")
    raw |= {
        "model_type": ARCHITECTURE,
        "vocab_size": _shape(embedding)[0] if embedding is not None else None,
        "prefix_lm": bool(raw["prefix_lm"]),
        "embedding_scale": raw["embedding_scale"] or 1.0,
        "tie_word_embeddings": "output.weight" not in tensors,
        "pad_token_id": _value(fields, "tokenizer.ggml.padding_token_id"),
        "bos_token_id": _value(fields, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos(fields),
    }
    for key in ("rms_norm_eps", "rope_theta", "embedding_scale"):
        if raw[key] is not None:  # stored as float32: 1e-6 comes back as 9.99999997e-07
            raw[key] = float(f"{raw[key]:.7g}")
    raw["initializer_range"] = 1 / raw["embedding_scale"]
    return HRMTextConfig.from_dict(raw, str(path))


def _eos(fields: dict[str, Any]) -> list[int]:
    ids = [_value(fields, f"tokenizer.ggml.{k}_token_id") for k in ("eos", "eot")]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _check(
    config: HRMTextConfig,
    parts: dict[str, tuple[str, ...]],
    tensors: dict[str, ReaderTensor],
    path: Path,
) -> None:
    shapes = config.tensor_shapes()
    for hub, names in parts.items():
        expected = (shapes[hub][0] // len(names), *shapes[hub][1:])
        for name in names:
            if name not in tensors:
                raise HRMEdgeError(f"{path}: lacks the tensor {name}")
            found, kind = _shape(tensors[name]), tensors[name].tensor_type
            if found != expected:
                raise HRMEdgeError(f"{path}: {name} is {found}, expected {expected}")
            if kind not in READABLE:
                known = ", ".join(k.name for k in READABLE)
                raise HRMEdgeError(f"{path}: {name} is {kind.name}, expected one of {known}")


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """Rows first; GGUF counts the fastest dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))

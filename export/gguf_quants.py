"""Weights as GGUF tensor types: which type a file type gives each tensor, and its blocks.

Floats and 8 and 5 bits are llama.cpp's own rounding, from the `gguf` package. Four bits are ours:
the searched scales of `quantize`, in the layout of Q4_0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, LlamaFileType, quants
from gguf import GGMLQuantizationType as Q

from hrm_edge.errors import HRMEdgeError

from .quantize import Quantized, quantize

BLOCK = 32  # weights that share a scale in Q4_0, Q5_0 and Q8_0


@dataclass(frozen=True)
class FileType:
    """Tensor types of a file: of the stacks' linears, the head and the embedding."""

    number: LlamaFileType  # general.file_type
    linear: Q
    head: Q
    embedding: Q
    bits: int


# As in llama.cpp's own presets the head of a file below 8 bits is finer than its linears.
FILE_TYPES = {
    "f32": FileType(LlamaFileType.ALL_F32, Q.F32, Q.F32, Q.F32, 32),
    "f16": FileType(LlamaFileType.MOSTLY_F16, Q.F16, Q.F16, Q.F16, 16),
    "bf16": FileType(LlamaFileType.MOSTLY_BF16, Q.BF16, Q.BF16, Q.BF16, 16),
    "q8_0": FileType(LlamaFileType.MOSTLY_Q8_0, Q.Q8_0, Q.Q8_0, Q.Q8_0, 8),
    "q5_0": FileType(LlamaFileType.MOSTLY_Q5_0, Q.Q5_0, Q.Q8_0, Q.Q5_0, 5),
    "q4_0": FileType(LlamaFileType.MOSTLY_Q4_0, Q.Q4_0, Q.Q8_0, Q.Q4_0, 4),
}


def file_type(name: str) -> FileType:
    """The file type called `name`. Raises HRMEdgeError listing those there are."""
    if name not in FILE_TYPES:
        known = ", ".join(FILE_TYPES)
        raise HRMEdgeError(f"GGUF type is {name!r}, expected one of {known}")
    return FILE_TYPES[name]


def fitting(qtype: Q, columns: int) -> Q:
    """`qtype`, or F16 where rows of `columns` weights do not divide into its blocks."""
    return Q.F16 if columns % GGML_QUANT_SIZES[qtype][0] else qtype


def nbytes(qtype: Q, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape` whose rows divide into blocks."""
    weights, size = GGML_QUANT_SIZES[qtype]
    return int(np.prod(shape)) // weights * size


def pack(weight: np.ndarray, qtype: Q) -> np.ndarray:
    """`weight` (float32 [N, K] or [K]) as `qtype`; quantized types are uint8 [N, bytes of a row].

    Raises HRMEdgeError if a value is too large for the type.
    """
    packer: Callable[[np.ndarray], np.ndarray] = {
        Q.F32: lambda w: w,
        Q.F16: _float16,
        Q.Q4_0: lambda w: q4_0_blocks(quantize(w, 4, BLOCK)),
    }.get(qtype, lambda w: quants.quantize(w, qtype))
    return packer(weight)


def q4_0_blocks(quantized: Quantized) -> np.ndarray:
    """Codes of groups of 32 as Q4_0: uint8 [N, 18 G], a float16 scale, then two codes a byte.

    The first half of a block sits in the low nibbles, the second half in the high ones. Both
    formats put zero at code 8, so a code means the same here and in MatMulNBits.
    """
    codes = quantized.codes  # [N, G, 16], codes 2i and 2i + 1 in byte i
    plain = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], BLOCK)
    halves = plain[..., :16] | plain[..., 16:] << 4
    scales = _float16(quantized.scales)[..., None].view(np.uint8)
    return np.concatenate([scales, halves], axis=-1).reshape(len(codes), -1)


def q4_0_codes(blocks: np.ndarray) -> Quantized:
    """The inverse of `q4_0_blocks`; the scales come back as float32."""
    split = blocks.reshape(len(blocks), -1, 18)
    scales = split[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    halves = split[..., 2:]
    plain = np.concatenate([halves & 15, halves >> 4], axis=-1)
    return Quantized(plain[..., 0::2] | plain[..., 1::2] << 4, scales)


def q8_0_codes(blocks: np.ndarray) -> Quantized:
    """Codes of Q8_0 blocks (uint8 [N, 34 G]) with zero at 128, and float32 scales."""
    split = blocks.reshape(len(blocks), -1, 34)
    scales = split[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    return Quantized(split[..., 2:] ^ 128, scales)


def _float16(values: np.ndarray) -> np.ndarray:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > np.finfo(np.float16).max:
        raise HRMEdgeError(f"a weight of {largest:.3g} is too large for float16; use bf16 or f32")
    return values.astype(np.float16)

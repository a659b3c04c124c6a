"""Codes as llama.cpp's blocks and back. A block is 32 weights of a row behind their scale.

Q4_0 and Q8_0 put zero in the middle of their codes, as MatMulNBits does, so that a code means the
same in a GGUF file and in an ONNX graph.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Q

from hrm_edge.errors import HRMEdgeError

from ..quantize.ggml import TYPES, Blocks
from ..quantize.grid import Quantized
from ..recipe import Format

FLOATS = {"float32": Q.F32, "float16": Q.F16, "bfloat16": Q.BF16}


def tensor_type(form: Format) -> Q:
    """llama.cpp's type of a tensor of that form."""
    if not form.quantized:
        return FLOATS[form.dtype]
    return Q.Q4_0 if form.bits == 4 else TYPES[form.bits]


def nbytes(qtype: Q, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape` whose rows divide into blocks."""
    weights, size = GGML_QUANT_SIZES[qtype]
    return int(np.prod(shape)) // weights * size


def lay_out(tensor: np.ndarray | Quantized | Blocks, form: Format) -> np.ndarray:
    """A whole tensor [N, K] or [K] as its type has it: floats, or uint8 [N, bytes of a row].

    Raises HRMEdgeError if a value is too large for the type.
    """
    if isinstance(tensor, Blocks):
        return tensor.data
    if isinstance(tensor, Quantized):
        return q4_0_blocks(tensor) if form.bits == 4 else q8_0_blocks(tensor)
    qtype = tensor_type(form)
    if qtype == Q.F16:
        return _float16(tensor)
    return tensor if qtype == Q.F32 else quants.quantize(tensor, qtype)


def q4_0_blocks(quantized: Quantized) -> np.ndarray:
    """Codes of groups of 32 as Q4_0: uint8 [N, 18 G], a float16 scale, then two codes a byte.

    The first half of a block sits in the low nibbles, the second half in the high ones.
    """
    codes = quantized.codes  # [N, G, 16], codes 2i and 2i + 1 in byte i
    plain = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], 32)
    halves = plain[..., :16] | plain[..., 16:] << 4  # code i low, code i + 16 high
    return np.concatenate([_scales(quantized), halves], axis=-1).reshape(len(codes), -1)


def q8_0_blocks(quantized: Quantized) -> np.ndarray:
    """Codes of groups of 32 as Q8_0: uint8 [N, 34 G], a float16 scale, then signed bytes."""
    codes = quantized.codes ^ 128  # [N, G, 32], zero at 128 -> two's complement
    return np.concatenate([_scales(quantized), codes], axis=-1).reshape(len(codes), -1)


def _scales(quantized: Quantized) -> np.ndarray:
    """uint8 [N, G, 2], the bytes of float16."""
    return _float16(quantized.scales)[..., None].view(np.uint8)


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

"""Weights in the layouts of XNNPACK's linears and of ExecuTorch's quantized embeddings."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..quantize.grid import Quantized
from ..recipe import Format

Rows = slice | np.ndarray


@dataclass(frozen=True)
class Linear:
    """A weight [N, K]: float32, 8 bits with a scale a row, or 4 bits with one a group."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    data: bytes
    scales: bytes = b""


def linear(tensor: np.ndarray | Quantized, form: Format, columns: int, rows: Rows) -> Linear:
    """`rows` of a weight [N, columns] for XNNPACK; 4-bit codes are two a byte, the first one low.

    8-bit codes are signed there; the scales of 4 bits are bfloat16.
    """
    if not isinstance(tensor, Quantized):
        weight = np.ascontiguousarray(tensor[rows], np.float32)
        return Linear((len(weight), columns), form.bits, columns, weight.tobytes())
    codes, scales = tensor.codes[rows], tensor.scales[rows]  # [n, G, group bytes], [n, G]
    shape = (len(codes), columns)
    if form.bits == 8:
        signed = (codes ^ 0x80).view(np.int8)  # zero at 128 -> two's complement
        return Linear(shape, 8, columns, signed.tobytes(), scales.tobytes())
    short = scales.astype(ml_dtypes.bfloat16)  # what XNNPACK's blocks have
    return Linear(shape, form.bits, form.group_size, codes.tobytes(), short.tobytes())


@dataclass(frozen=True)
class Table:
    """An embedding [V, D]: float32 values, or codes with `scales` [V, groups]."""

    bits: int
    values: np.ndarray
    scales: np.ndarray | None = None


def table(tensor: np.ndarray | Quantized, form: Format, scale: float) -> Table:
    """The weight [V, D] times `scale`; 4-bit codes are two a byte, the first one high."""
    if not isinstance(tensor, Quantized):
        return Table(form.bits, tensor * np.float32(scale))
    codes = tensor.codes.reshape(len(tensor.codes), -1)  # [V, bytes of a row]
    scales = tensor.scales * np.float32(scale)
    if form.bits == 8:
        return Table(8, (codes ^ 0x80).view(np.int8), scales)
    return Table(form.bits, codes << 4 | codes >> 4, scales)

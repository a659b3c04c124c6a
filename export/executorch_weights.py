"""Weights in the layouts of XNNPACK's linears and of ExecuTorch's quantized embeddings."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from hrm_edge.errors import HRMEdgeError

from .quantize import quantize

LEAST_GROUP = 32  # XNNPACK takes groups of a multiple of this


@dataclass(frozen=True)
class Linear:
    """A weight [N, K]: float32, 8 bits with a scale a row, or 4 bits with one a group."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    data: bytes
    scales: bytes = b""


def linear(name: str, weight: np.ndarray, bits: int, group_size: int) -> Linear:
    """`weight` (float32 [N, K]) for XNNPACK; 4-bit codes are two a byte, the first one low.

    Raises HRMEdgeError if no group that XNNPACK takes divides K.
    """
    n, k = weight.shape
    if bits == 32:
        return Linear((n, k), bits, k, np.ascontiguousarray(weight, np.float32).tobytes())
    group = fitting(name, k, group_size, bits)
    found = quantize(weight, bits, group, positive=True)
    if bits == 8:
        signed = (found.codes ^ 0x80).view(np.int8)
        return Linear((n, k), bits, k, signed.tobytes(), found.scales.tobytes())
    scales = found.scales.astype(ml_dtypes.bfloat16)  # what XNNPACK's blocks have
    return Linear((n, k), bits, group, found.codes.tobytes(), scales.tobytes())


@dataclass(frozen=True)
class Table:
    """An embedding [V, D]: float32 values, or codes with `scales` [V, groups]."""

    bits: int
    values: np.ndarray
    scales: np.ndarray | None = None


def table(name: str, weight: np.ndarray, scale: float, bits: int, group_size: int) -> Table:
    """`weight` (float32 [V, D]) times `scale`; 4-bit codes are two a byte, the first one high."""
    v, d = weight.shape
    if bits == 32:
        return Table(bits, weight * np.float32(scale))
    found = quantize(weight, bits, fitting(name, d, group_size, bits))
    codes, scales = found.codes.reshape(v, -1), found.scales * np.float32(scale)
    if bits == 8:
        return Table(bits, (codes ^ 0x80).view(np.int8), scales)
    return Table(bits, codes << 4 | codes >> 4, scales)


def fitting(name: str, columns: int, group_size: int, bits: int) -> int:
    """Weights that share a scale: a row of 8 bits, or the largest group that divides a row of 4."""
    if bits == 8:
        return columns
    group = max(group_size, LEAST_GROUP)
    while columns % group and group > LEAST_GROUP:
        group //= 2
    if columns % group:
        raise HRMEdgeError(
            f"{name} has rows of {columns}; 4 bits in ExecuTorch need a multiple of {LEAST_GROUP} "
            "(8 bits take any: --bits 8 --embedding-bits 8 --head-bits 8)"
        )
    return group

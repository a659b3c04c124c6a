"""Round-to-nearest weight quantization with searched scales, in numpy.

A row is cut into groups that share a scale; the value of code c is `(c - zero_point) * scale` with
the zero point fixed in the middle (8 or 128), so that zero stays exactly zero. This is the layout
of ONNX Runtime's MatMulNBits and GatherBlockQuantized: two 4-bit codes a byte, the first one low,
the last group of a row padded.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

# How far the largest weight of a group may exceed the grid's end: above 1 it is clipped, which
# costs less than a coarse grid for all others. The best factor is searched group by group.
CLIP_FACTORS = {4: tuple(np.linspace(0.9, 1.25, 8)), 8: (1.0,)}
CHUNK_BYTES = 1 << 20  # float32 rows quantized at once; keeps the search inside the L2 cache


@dataclass(frozen=True)
class Quantized:
    """Codes and scales of a weight [N, K] in G groups a row."""

    codes: np.ndarray  # uint8 [N, G, group_size * bits / 8]
    scales: np.ndarray  # float32 [N, G]


def quantize(weight: np.ndarray, bits: int, group_size: int) -> Quantized:
    """Quantize `weight` (float32 [N, K]) to `bits` 4 or 8, each scale minimizing the squared error.

    For given codes c the best scale is sum(w c) / sum(c c); of the CLIP_FACTORS, the one with the
    least error wins.
    """
    n, k = weight.shape
    groups = -(-k // group_size)
    codes = np.empty((n, groups, group_size * bits // 8), np.uint8)
    scales = np.empty((n, groups), np.float32)
    rows = max(1, CHUNK_BYTES // (4 * groups * group_size))

    def work(start: int) -> None:
        part = slice(start, start + rows)
        padded = _grouped(weight[part], group_size)
        codes[part], scales[part] = _quantize_groups(padded, bits)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, n, rows)))
    return Quantized(codes, scales)


def dequantize(quantized: Quantized, bits: int, columns: int) -> np.ndarray:
    """The float32 [N, columns] weight that `quantized` stands for."""
    codes = quantized.codes
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * quantized.scales[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def _grouped(weight: np.ndarray, group_size: int) -> np.ndarray:
    n, k = weight.shape
    if k % group_size:
        weight = np.pad(weight, ((0, 0), (0, -k % group_size)))
    return weight.reshape(n, -1, group_size)


def _quantize_groups(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (packed) and scales of w [R, G, group_size]."""
    zero = 1 << (bits - 1)
    at = np.abs(w).argmax(-1, keepdims=True)
    peak = np.take_along_axis(w, at, -1)[..., 0]  # signed, so that it takes the longer side, -zero
    unit = np.divide(-zero, peak, out=np.zeros_like(peak), where=peak != 0)
    best_gain, inverse = np.full_like(peak, -1.0), unit
    scales = np.zeros_like(peak)
    for factor in CLIP_FACTORS[bits]:
        trial = unit * np.float32(factor)
        q = _codes(w, trial, zero)
        wq, qq = np.einsum("rgk,rgk->rg", w, q), np.einsum("rgk,rgk->rg", q, q)
        fitted = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
        gain = wq * fitted  # sum(w^2) minus the squared error
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        inverse, scales = np.where(better, trial, inverse), np.where(better, fitted, scales)
    q = (_codes(w, inverse, zero) + zero).astype(np.uint8)
    return (q[..., 0::2] | q[..., 1::2] << 4 if bits == 4 else q), scales


def _codes(w: np.ndarray, inverse: np.ndarray, zero: int) -> np.ndarray:
    q = w * inverse[..., None]
    np.rint(q, out=q)
    return np.clip(q, -zero, zero - 1, out=q)

"""Weights on a grid: codes in groups that share a scale, in numpy.

A row is cut into groups; the value of code c is `(c - zero_point) * scale`. The zero point is fixed
in the middle (8 or 128) if symmetric, else a code of its own for each group; either way zero stays
exactly zero. This is the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized: two 4-bit
codes a byte, the first one low, the last group of a row padded.
"""

import os
from collections.abc import Iterator
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
    zero_points: np.ndarray | None = None  # uint8 [N, ceil(G * bits / 8)]; None: in the middle


@dataclass(frozen=True)
class Grid:
    """The values that each group's codes can stand for."""

    scales: np.ndarray  # float32 [N, G]
    zeros: np.ndarray  # float32 [N, G], whole numbers
    bits: int

    def codes(self, weight: np.ndarray, inverse: np.ndarray | None = None) -> np.ndarray:
        """The code, less its zero point, nearest to each of weight [N, G, group_size]."""
        if inverse is None:
            inverse = _inverse(self.scales)
        q = weight * inverse[..., None]  # [N, G, group_size], in steps of each group's scale
        np.rint(q, out=q)
        low = -self.zeros[..., None]  # codes go from 0 to 2^bits - 1, here less their zero point
        return np.clip(q, low, low + ((1 << self.bits) - 1), out=q)

    def quantized(self, codes: np.ndarray, symmetric: bool) -> Quantized:
        """Pack `codes` [N, G, group_size] (less their zero points)."""
        packed = pack((codes + self.zeros[..., None]).astype(np.uint8), self.bits)
        zeros = None if symmetric else pack(self.zeros.astype(np.uint8), self.bits)
        return Quantized(packed, self.scales, zeros)


def quantize(
    weight: np.ndarray,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    positive: bool = False,
) -> Quantized:
    """Round `weight` (float32 [N, K]) to `bits` 4 or 8, each scale minimizing the squared error.

    For given codes c the best scale is sum(w c) / sum(c c); of the CLIP_FACTORS, the one with the
    least error wins. A symmetric grid's scale may be negative, so that the largest weight gets the
    code farthest from zero; with `positive` no scale is negative, nor zero.
    """
    n, k = weight.shape
    groups = -(-k // group_size)  # G, the last one padded
    codes = np.empty((n, groups, group_size * bits // 8), np.uint8)
    scales = np.empty((n, groups), np.float32)
    zeros = None if symmetric else np.empty((n, -(-groups * bits // 8)), np.uint8)
    # Rows are independent of one another: a chunk of them for each thread.
    rows = max(1, CHUNK_BYTES // (4 * groups * group_size))

    def work(start: int) -> None:
        part = slice(start, start + rows)
        found, inverse = search(
            grouped(weight[part], group_size), bits, symmetric, positive=positive
        )
        chosen = found.codes(grouped(weight[part], group_size), inverse)
        packed = found.quantized(chosen, symmetric)
        codes[part], scales[part] = packed.codes, packed.scales
        if zeros is not None and packed.zero_points is not None:
            zeros[part] = packed.zero_points

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, n, rows)))
    if positive:
        np.maximum(scales, np.finfo(np.float32).tiny, out=scales)
    return Quantized(codes, scales, zeros)


def dequantize(quantized: Quantized, bits: int, columns: int) -> np.ndarray:
    """The float32 [N, columns] weight that `quantized` stands for."""
    rows, groups = quantized.scales.shape
    values = np.empty((rows, quantized.codes[0].size * 8 // bits), np.float32)
    step = max(1, CHUNK_BYTES // values[0].nbytes)

    def work(start: int) -> None:
        part = slice(start, start + step)
        codes = unpack(quantized.codes[part].reshape(len(values[part]), -1), bits)  # [n, G * g]
        # (code - zero point) * scale, group by group
        middle = np.float32(1 << (bits - 1))
        if quantized.zero_points is not None:
            middle = unpack(quantized.zero_points[part], bits)[:, :groups, None].astype(np.float32)
        grid = codes.reshape(len(codes), groups, -1).astype(np.float32) - middle
        values[part] = (grid * quantized.scales[part, :, None]).reshape(len(codes), -1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, rows, step)))
    return values[:, :columns]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes [..., n] as stored [..., ceil(n * bits / 8)]: two of 4 bits a byte, low first."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack`, the padding of an odd n included."""
    if bits == 8:
        return packed
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = packed & 15, packed >> 4
    return codes


def grouped(weight: np.ndarray, group_size: int) -> np.ndarray:
    """[N, K] as [N, G, group_size], the last group padded with zeros."""
    n, k = weight.shape
    if k % group_size:
        weight = np.pad(weight, ((0, 0), (0, -k % group_size)))
    return weight.reshape(n, -1, group_size)


def search(
    w: np.ndarray,
    bits: int,
    symmetric: bool,
    importance: np.ndarray | None = None,
    positive: bool = False,
) -> tuple[Grid, np.ndarray]:
    """The grid with the least squared error for w [N, G, group_size], and 1 / step for its codes.

    `importance` [G, group_size] weighs the columns' errors. The scale is fitted to the codes, so
    these were chosen with another step, which is returned.
    """
    best_gain = np.full(w.shape[:2], -1.0, np.float32)
    inverse = scales = zeros = np.zeros_like(best_gain)
    for trial, zero in _trials(w, bits, symmetric, positive):
        q = Grid(trial, zero, bits).codes(w, trial)  # [N, G, group_size]
        # The squared error sum(h (w - s q)^2) of these codes, h being the importance, is least at
        # s = sum(h w q) / sum(h q q), and then is sum(h w w) less the gain s sum(h w q).
        weighted = q if importance is None else q * importance
        wq, qq = np.einsum("rgk,rgk->rg", w, weighted), np.einsum("rgk,rgk->rg", q, weighted)
        fitted = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
        gain = wq * fitted  # sum(w^2) minus the squared error
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        inverse, scales = np.where(better, trial, inverse), np.where(better, fitted, scales)
        zeros = np.where(better, zero, zeros)
    return Grid(scales, zeros, bits), inverse


def _trials(
    w: np.ndarray, bits: int, symmetric: bool, positive: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Candidates for (1 / step, zero point) [N, G] of each group."""
    top = (1 << bits) - 1
    if symmetric:
        # The largest weight of a group goes to one end of the grid, times each clip factor.
        middle = np.float32(1 << (bits - 1))
        at = np.abs(w).argmax(-1, keepdims=True)
        peak = np.take_along_axis(w, at, -1)[..., 0]  # signed: it takes the longer side, -middle
        end, peak = (middle - 1, np.abs(peak)) if positive else (-middle, peak)
        unit = np.divide(end, peak, out=np.zeros_like(peak), where=peak != 0)
        for factor in CLIP_FACTORS[bits]:
            yield unit * np.float32(factor), np.full_like(peak, middle)
        return
    # Asymmetric: the grid spans the group's range, zero included, and clips both ends alike.
    low, high = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
    span = high - low
    unit = np.divide(np.float32(top), span, out=np.zeros_like(span), where=span > 0)
    for factor in CLIP_FACTORS[bits]:
        trial = unit * np.float32(factor)
        middle = (high + low) / 2  # what is clipped is clipped on both sides
        yield trial, np.clip(np.rint(top / 2 - middle * trial), 0, top)


def _inverse(scales: np.ndarray) -> np.ndarray:
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)

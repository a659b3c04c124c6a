"""GPTQ: columns are rounded one after the other, and those to come make up for each one's error.

After Frantar et al., "GPTQ" (arXiv 2210.17323): with the Hessian H = X^T X of a linear's inputs,
rounding column i changes the others by -e_i U[i, i+1:], U the upper Cholesky factor of H^-1. The
columns with the largest inputs come first ("act order"), on grids that are fixed beforehand, so
that nothing needs to be permuted at run time. Knows one linear; hessians.py knows the recurrence.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np

from hrm_edge.errors import HRMEdgeError

from ..recipe import GPTQ, Format
from .grid import Grid, Quantized, grouped, search

PLAIN = GPTQ()
BLOCK = 128  # columns whose errors are passed on together


def gptq(weight: np.ndarray, hessian: np.ndarray, form: Format, method: GPTQ = PLAIN) -> Quantized:
    """Quantize `weight` (float32 [N, K]) to `form` for inputs of second moment `hessian` [K, K].

    `method.damping` times the mean of the diagonal is added to it. A column that is never used is
    rounded to nearest. Raises HRMEdgeError if the Hessian cannot be inverted.
    """
    k, group_size = weight.shape[1], form.group_size
    order, upper = _factor(hessian, method.damping)
    grid = _grid(weight, hessian, form, method.symmetric)
    column = np.arange(k) // group_size  # the group of each column
    scales, zeros = (x[:, column][:, order] for x in (grid.scales, grid.zeros))  # [N, K], permuted
    codes = np.zeros((len(weight), grid.scales.shape[1] * group_size), np.float32)
    codes[:, order] = _round_columns(weight[:, order], scales, zeros, upper, form.bits)
    codes = codes.reshape(len(weight), -1, group_size)  # [N, G, group_size], in their own order
    return grid.quantized(codes, method.symmetric)


def _grid(weight: np.ndarray, hessian: np.ndarray, form: Format, symmetric: bool) -> Grid:
    """The groups' scales, fixed beforehand: columns with large inputs count more in the search.

    They are rounded here to the type they are stored in, so that columns to come make up for that
    too; what is not float32 is XNNPACK's (bfloat16) or llama.cpp's (float16).
    """
    importance = grouped(np.diag(hessian)[None].astype(np.float32), form.group_size)[0]  # [G, g]
    importance = importance / max(float(importance.mean()), 1e-30) + 1e-3
    groups = grouped(weight, form.group_size)  # [N, G, group_size]
    grid, _ = search(groups, form.bits, symmetric, importance, form.positive)
    if form.scales == "float32":
        return grid
    dtype = getattr(ml_dtypes, form.scales, None) or form.scales
    scales = grid.scales.astype(dtype).astype(np.float32)
    if form.positive:
        scales = np.maximum(scales, np.finfo(np.float32).tiny)
    return replace(grid, scales=scales)


def _factor(hessian: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """The order of the columns, and U [K, K] of the damped Hessian in that order, float32."""
    h = hessian.astype(np.float64)  # [K, K]
    diagonal = np.einsum("ii->i", h)
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    order = np.argsort(-diagonal, kind="stable")  # columns with the largest inputs first
    try:
        # H^-1 = U^T U with U upper triangular: row i of U holds what column i hands on.
        inverse = np.linalg.inv(h[np.ix_(order, order)])
        upper = np.linalg.cholesky(inverse).T
    except np.linalg.LinAlgError:
        raise HRMEdgeError(
            f"GPTQ cannot invert a Hessian of {len(h)} inputs; use more calibration lines or a "
            f"damping above {damping}"
        ) from None
    return order, np.ascontiguousarray(upper, dtype=np.float32)


def _round_columns(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, upper: np.ndarray, bits: int
) -> np.ndarray:
    """Codes [N, K], less their zero points, of columns already in order; scales, zeros [N, K]."""
    w = np.ascontiguousarray(weight.T)  # columns as rows, so that each is contiguous
    scales, zeros = np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes, top = np.empty_like(w), (1 << bits) - 1
    # w [K, N]: row i is column i of the weight. Within a block, errors go to the rest of it one by
    # one; what lies behind gets them all at once: the same sum, as a matrix product.
    for start in range(0, len(w), BLOCK):
        stop = min(start + BLOCK, len(w))
        errors = np.empty_like(w[start:stop])
        for i in range(start, stop):
            # e = (w_i - q s) / U_ii, and w_j -= U_ij e for the columns j to come
            q = np.clip(np.rint(w[i] * inverse[i]), -zeros[i], top - zeros[i])
            codes[i] = q
            errors[i - start] = (w[i] - q * scales[i]) / upper[i, i]
            w[i + 1 : stop] -= upper[i, i + 1 : stop, None] * errors[i - start]
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return codes.T

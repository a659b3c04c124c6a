"""Half-quadratic quantization: zero points that make the errors sparse, without any data.

After Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): the
error is split off with a shrinkage for the p-norm (p < 1), then the zero point is the mean of what
the codes leave. Ours ends by rounding the zero points to codes, which is what ONNX Runtime's
integer kernel takes, and fitting the scales to the final codes.
"""

import numpy as np

from ..recipe import HQQ
from .grid import Grid, Quantized, grouped

CHUNK_ROWS = 512


def hqq(weight: np.ndarray, bits: int, group_size: int, method: HQQ) -> Quantized:
    """Quantize `weight` (float32 [N, K]); always with zero points."""
    parts = [
        _solve(grouped(weight[start : start + CHUNK_ROWS], group_size), bits, method)
        for start in range(0, len(weight), CHUNK_ROWS)
    ]
    zeros = np.concatenate([p.zero_points for p in parts if p.zero_points is not None])
    codes, scales = (np.concatenate([getattr(p, n) for p in parts]) for n in ("codes", "scales"))
    return Quantized(codes, scales, zeros)


def _solve(w: np.ndarray, bits: int, method: HQQ) -> Quantized:
    top, beta, best = (1 << bits) - 1, method.beta, np.inf
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    inverse = np.divide(top, high - low, out=np.ones_like(high), where=high > low)
    zero = np.rint(-low * inverse)
    kept = zero
    for _ in range(method.iterations):
        # w [N, G, g], zero and inverse [N, G, 1]: round, split the error into a sparse part and a
        # rest, and take the zero point that leaves the least rest
        codes = np.clip(np.rint(w * inverse + zero), 0, top)
        error = w - (codes - zero) / inverse
        if (size := float(np.abs(error).mean())) >= best:
            break
        best, kept = size, zero
        sparse = _shrink(error, beta, method.p)
        zero = np.mean(codes - (w - sparse) * inverse, axis=-1, keepdims=True)
        beta *= method.growth
    whole = np.clip(np.rint(kept), 0, top)
    codes = np.clip(np.rint(w * inverse + whole), 0, top) - whole
    # with zero points rounded to codes, the scales of least squared error
    wq, qq = np.einsum("rgk,rgk->rg", w, codes), np.einsum("rgk,rgk->rg", codes, codes)
    scales = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
    return Grid(scales, whole[..., 0].astype(np.float32), bits).quantized(codes, symmetric=False)


def _shrink(x: np.ndarray, beta: float, p: float) -> np.ndarray:
    """The proximal step of the p-norm: what of each error is an outlier's."""
    size = np.maximum(np.abs(x), 1e-8)
    return np.sign(x) * np.maximum(size - size ** (p - 1) / beta, 0)

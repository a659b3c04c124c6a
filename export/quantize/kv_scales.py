"""Scales of a quantized KV cache: from the weights alone, or fitted to calibration samples.

Without data: the input of every projection has unit RMS (MagicNorm), so key channel c has a
standard deviation near the norm of its weight row, whatever the data. Rotary embeddings turn
channel i with channel i + head_dim / 2, so both get the larger norm of the two.

With data, each slot gets scales of its own: passes share weights and not what they put into the
cache. K is taken after the rotary embedding, which is how the kernel stores it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hrm_edge.config import HRMTextConfig
from hrm_edge.names import place

from ..reference.forward import Variant

# The range that the codes cover, in standard deviations of a projection of white inputs; later
# passes spread up to 1.5 times as far. At 4 bits, 5 compromises between clipping and coarseness.
RANGE = {8: 12.0, 4: 5.0}
# What fitted scales are chosen from, times the one that just clips nothing, and by which error.
CLIP_FACTORS = tuple(np.linspace(0.4, 1.05, 14))
POWER = 6


@dataclass(frozen=True)
class CacheScales:
    """Of one slot: K and V scales, float32 [heads, 1, head_dim] each."""

    k: np.ndarray
    v: np.ndarray


class FittedCache(Variant):
    """Runs the model of `values` and finds each slot's scales; `kv_bits` are those of each slot.

    K and V are rounded on as they are found, so that later passes see what attention will read.
    """

    def __init__(
        self,
        config: HRMTextConfig,
        values: Callable[[str], np.ndarray | None],
        kv_bits: Sequence[int],
    ) -> None:
        self._config, self._values, self._bits = config, values, kv_bits
        self.scales: dict[int, CacheScales] = {}

    def weight(self, name: str, turn: int) -> np.ndarray | None:
        return self._values(name)

    def cache(
        self, name: str, turn: int, k: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        slot = turn * self._config.layers_per_stack + place(name)[1]
        bits = self._bits[slot]
        found = CacheScales(*(fit(x, bits)[:, None, :] for x in (k, v)))
        self.scales[slot] = found
        return round_cache(k, found.k, bits), round_cache(v, found.v, bits)


def fit(x: np.ndarray, bits: int) -> np.ndarray:
    """The scale of each channel of x [T, heads, head_dim] with the least error to the power POWER.

    The largest values are what attention turns on: scales of least squared error, which clip them,
    give several times the KL divergence at 4 bits (docs/quantization.md).
    """
    top = (1 << (bits - 1)) - 1
    end = np.maximum(np.abs(x).max(axis=0) / top, 1e-8).astype(np.float32)
    least, best = np.full_like(end, np.inf), end
    # One scale a channel [heads, head_dim], each tried against all tokens T.
    for factor in CLIP_FACTORS:
        scale = end * np.float32(factor)
        error = (round_cache(x, scale[:, None], bits) - x) / end
        size = np.mean((error * error) ** (POWER // 2), axis=0)
        best, least = np.where(size < least, scale, best), np.minimum(size, least)
    return best


def round_cache(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """x [T, heads, head_dim] as attention reads it back; scale [heads, 1, head_dim]."""
    step, end = scale[:, 0], 1 << (bits - 1)
    return np.clip(np.rint(x / step), -end, end - 1) * step


def kv_scales(
    config: HRMTextConfig, gqkv: np.ndarray, kv_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """K and V scales, float32 [heads, 1, head_dim] each, from a fused gqkv weight [4A, D]."""
    shape = (config.num_attention_heads, config.head_dim)
    # rows of gqkv: gate, q, k, v; the norm of a row is its channel's spread for inputs of unit RMS
    _, _, key, value = np.split(np.linalg.norm(gqkv, axis=1), 4)  # [A] each
    halves = key.reshape(shape[0], 2, -1)
    rotated = np.broadcast_to(halves.max(axis=1, keepdims=True), halves.shape)
    # the grid's end lies RANGE standard deviations out
    step = RANGE[kv_bits] / ((1 << (kv_bits - 1)) - 1)
    return tuple(
        np.maximum(spread.reshape(shape) * step, 1e-8).astype(np.float32)[:, None, :]
        for spread in (rotated, value)
    )  # type: ignore[return-value]

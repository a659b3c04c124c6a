"""Scales of a quantized KV cache, from the weights alone.

The input of every projection has unit RMS (MagicNorm), so key channel c has a standard deviation
near the norm of its weight row, whatever the data. Rotary embeddings turn channel i with channel
i + head_dim / 2, so both get the larger norm of the two.
"""

import numpy as np

from hrm_edge.config import HRMTextConfig

# The range that the codes cover, in standard deviations. Eight bits can afford to clip next to
# nothing; four bits cannot, and clip what a normal distribution exceeds once in 16,000 values.
RANGE = {8: 12.0, 4: 4.0}


def kv_scales(
    config: HRMTextConfig, gqkv: np.ndarray, kv_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """K and V scales, float32 [heads, 1, head_dim] each, from a fused gqkv weight [4A, D]."""
    shape = (config.num_attention_heads, config.head_dim)
    _, _, key, value = np.split(np.linalg.norm(gqkv, axis=1), 4)
    halves = key.reshape(shape[0], 2, -1)
    rotated = np.broadcast_to(halves.max(axis=1, keepdims=True), halves.shape)
    step = RANGE[kv_bits] / ((1 << (kv_bits - 1)) - 1)
    return tuple(
        np.maximum(spread.reshape(shape) * step, 1e-8).astype(np.float32)[:, None, :]
        for spread in (rotated, value)
    )  # type: ignore[return-value]

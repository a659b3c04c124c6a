"""Arithmetic that several rooms need, in numpy."""

import numpy as np

from hrm_edge.config import HRMTextConfig

ORT_NAMES = {"float": "float32"}  # where ONNX Runtime calls a type otherwise than numpy


def rotary(config: HRMTextConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """RoPE's cos and sin (arXiv 2104.09864), float32 [length, head_dim / 2] each.

    Position p turns pair i by p * theta^(-2 i / head_dim).
    """
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    inverse = (1.0 / config.rope_theta**pairs).astype(np.float32)
    angles = np.outer(np.arange(length, dtype=np.float32), inverse)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def ort_dtype(kind: str) -> np.dtype:
    """numpy's type of what ONNX Runtime calls "tensor(float)" and the like."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype(ORT_NAMES.get(name, name))

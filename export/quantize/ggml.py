"""llama.cpp's own rounding, from the `gguf` package: plain, one scale for 32 weights, no search."""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import quants

TYPES = {5: Q.Q5_0, 8: Q.Q8_0}  # bits -> block type


@dataclass(frozen=True)
class Blocks:
    """A weight [N, K] as a GGUF file has it: uint8 [N, bytes of a row]."""

    data: np.ndarray
    bits: int

    def values(self) -> np.ndarray:
        """The float32 weight that the blocks stand for."""
        return quants.dequantize(self.data, TYPES[self.bits])


def ggml_blocks(weight: np.ndarray, bits: int) -> Blocks:
    """`weight` (float32 [N, K]) rounded to `bits` 5 or 8."""
    return Blocks(quants.quantize(weight, TYPES[bits]), bits)

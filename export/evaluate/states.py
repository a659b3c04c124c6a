"""How far a quantized model's states stray from the original's, pass by pass: it needs no labels.

The error of a state is |x - x0| / |x0| over the residual stream after a layer, x0 being the
original's. The fidelity of a pass is the mean cosine between the states it leaves, z_L or z_H:
MagicNorm only scales the residual, so its cosine is the state's. A model can keep the accuracy of
its tokens and lose whole answers; this figure tells (arXiv 2606.26488).
"""

import numpy as np

from hrm_edge.config import HRMTextConfig

from ..reference.forward import States


class StateErrors:
    """A Watch of the reference forward: compares every later variant with the first."""

    def __init__(self, config: HRMTextConfig, others: int) -> None:
        shape = (others, len(config.passes), config.layers_per_stack)
        self._off, self._size, self._rows = np.zeros(shape), np.zeros(shape[1:]), 0
        self._cosines = np.zeros(shape[:2])

    def __call__(self, turn: int, layer: int, residuals: States) -> None:
        """Residuals [T, D] of all variants after that layer."""
        original, *others = residuals
        last = layer == self._size.shape[1] - 1
        self._size[turn, layer] += float(np.square(original).sum())
        self._rows += len(original) if last and turn == 0 else 0
        for i, x in enumerate(others):
            self._off[i, turn, layer] += float(np.square(x - original).sum())
            if last:
                self._cosines[i, turn] += float(_cosines(x, original).sum())

    @property
    def errors(self) -> np.ndarray:
        """Relative error [variants, passes, layers] of the residuals."""
        return np.sqrt(self._off / self._size)

    @property
    def cosines(self) -> np.ndarray:
        """Mean cosine [variants, passes] of the states."""
        return self._cosines / self._rows


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row; [T]."""
    return (a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))

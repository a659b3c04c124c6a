"""A checkpoint whose residual stream is turned by an orthogonal matrix: the same function.

MagicNorm has no weights, so rms_norm(x R) = rms_norm(x) R for every orthogonal R, and R can be
folded into what writes to the residual stream (embedding, z_L_init, o_proj, down_proj) and undone
in what reads from it (gqkv_proj, gate_up_proj, head). It costs nothing at run time. A Hadamard
matrix spreads outliers over all columns. The inputs of o_proj and down_proj cannot be turned: the
gates before them act on single channels.
"""

from dataclasses import dataclass

import numpy as np

from hrm_edge.bundle import Manifest
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.names import DOWN, OUT

WRITERS = (OUT, DOWN)
SEED = 0


@dataclass(frozen=True)
class RotatedCheckpoint(Checkpoint):
    """`source` with its residual stream turned by `rotation` [D, D]."""

    source: Checkpoint
    rotation: np.ndarray

    def float32(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of tensor `name`, turned."""
        if any(writer in name for writer in WRITERS):
            return (self.rotation.T @ self.source.float32(name))[rows]
        return self.source.float32(name, rows) @ self.rotation

    def codes(self, name: str, bits: int, group_size: int) -> None:
        """None: stored codes do not survive a rotation."""
        return None


def rotate(checkpoint: Checkpoint) -> RotatedCheckpoint:
    """`checkpoint` turned by `hadamard` of its hidden size."""
    c = checkpoint
    turned = hadamard(c.config.hidden_size).astype(np.float32)
    return RotatedCheckpoint(c.path, c.config, c.parts, c.files, c, turned)


def as_stored(checkpoint: Checkpoint, manifest: Manifest) -> Checkpoint:
    """The checkpoint in the basis of the bundle's weights, so that parts can be exchanged."""
    return rotate(checkpoint) if manifest.quantization.rotated else checkpoint


def hadamard(size: int) -> np.ndarray:
    """A random orthogonal matrix [size, size] with entries of like size, float64.

    The Kronecker product of the Sylvester-Hadamard matrix for the power of two in `size` and a
    random orthogonal one for the odd rest, with random signs.
    """
    pick = np.random.default_rng(SEED)
    odd = size
    matrix = np.ones((1, 1))
    while odd % 2 == 0:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
        odd //= 2
    if odd > 1:
        matrix = np.kron(matrix, np.linalg.qr(pick.standard_normal((odd, odd)))[0])
    return pick.choice([-1.0, 1.0], size)[:, None] * matrix

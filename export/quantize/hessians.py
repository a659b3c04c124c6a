"""The calibration forward: second moments of every linear's inputs, over all passes that use it.

A weight of a recurrent stack is used several times a token, each time on other inputs, and what it
gets wrong in one pass is in the inputs of the next. So the moments come from a model whose weights
are already quantized as far as they are, and are summed over the passes.
"""

from collections.abc import Callable

import numpy as np

from hrm_edge.config import HRMTextConfig

from ..recipe import GPTQ
from ..reference.forward import Batch, Read, Variant, Watch, forward

LATE = 4.0  # weight of a pass in the last H cycle, if late passes count more
Values = Callable[[str], np.ndarray | None]  # hub name -> quantized float32 weight, if there is one


def pass_weights(config: HRMTextConfig, passes: str) -> np.ndarray:
    """How much each pass of a token counts for its stack [passes]; see recipe.GPTQ."""
    stacks = np.array(config.passes)
    weights = np.ones(len(stacks))
    last_cycle = np.arange(len(stacks)) >= len(stacks) - (config.L_cycles + 1)
    if passes == "late":
        weights[last_cycle] = LATE
    for stack in set(config.passes):
        turns = np.flatnonzero(stacks == stack)
        if passes in ("first", "last"):
            weights[turns] = 0
            weights[turns[0 if passes == "first" else -1]] = 1
    return weights


class Moments(Variant):
    """The model as quantized so far; sums X^T X of the inputs of `names`.

    `weights` [passes] says how much each pass counts. With `original`, `cross` sums X0^T X as well,
    X0 being the original model's inputs.
    """

    def __init__(
        self,
        values: Values,
        names: frozenset[str],
        weights: np.ndarray,
        original: "Original | None" = None,
    ) -> None:
        self._values, self._names, self._weights = values, names, weights
        self._original = original
        self.hessians: dict[str, np.ndarray] = {}
        self.cross: dict[str, np.ndarray] = {}

    def weight(self, name: str, turn: int) -> np.ndarray | None:
        return self._values(name)

    def inputs(self, name: str, turn: int, x: np.ndarray) -> np.ndarray:
        if name in self._names and self._weights[turn]:
            factor = np.float32(self._weights[turn] / len(x))
            self._add(self.hessians, name, factor * (x.T @ x))
            if self._original is not None:
                self._add(self.cross, name, factor * (self._original.seen[name, turn].T @ x))
        return x

    @staticmethod
    def _add(sums: dict[str, np.ndarray], name: str, moment: np.ndarray) -> None:
        if name in sums:
            sums[name] += moment
        else:
            sums[name] = moment


class Original(Variant):
    """The original model; remembers what its linears read, all of it (`keep`) or just the last."""

    def __init__(self, keep: bool) -> None:
        self.keep, self.complete = keep, False
        self.seen: dict[tuple[str, int], np.ndarray] = {}

    def inputs(self, name: str, turn: int, x: np.ndarray) -> np.ndarray:
        if not self.keep:
            self.seen.clear()
        self.seen[name, turn] = x
        return x


def moments(
    config: HRMTextConfig,
    read: Read,
    batch: Batch,
    found: Moments,
    original: Original | None,
    watch: Watch | None = None,
) -> Moments:
    """Runs the calibration forward for `found`, and the original beside it if need be."""
    beside = [original] if original is not None and not original.complete else []
    forward(config, read, batch, [*beside, found], watch)
    if original is not None:
        original.complete = original.keep
    return found


def corrected(
    weight: np.ndarray, hessian: np.ndarray, cross: np.ndarray, method: GPTQ
) -> np.ndarray:
    """The weight that does to quantized inputs what `weight` does to the original's, nearly.

    The least-squares solution W C H^-1 (damped as GPTQ is), `method.drift` of the way.
    """
    # min over W' of |W X0 - W' X|^2: W' = W (X0 X^T)(X X^T)^-1, both moments damped alike
    damp = method.damping * float(np.mean(np.diag(hessian))) * np.eye(len(hessian))
    target = np.linalg.solve((hessian + damp).astype(np.float64), (cross + damp).T @ weight.T).T
    # W (C + d)(H + d)^-1: H is symmetric, so solve for the transpose
    return (weight + method.drift * (target - weight)).astype(np.float32)

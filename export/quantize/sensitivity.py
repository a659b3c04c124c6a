"""What an error costs: the divergence that one linear's rounding causes, or noise in one pass."""

from collections.abc import Callable, Sequence

import numpy as np

from hrm_edge.config import HRMTextConfig
from hrm_edge.names import GATE_UP, GQKV, STACKS, is_linear
from hrm_edge.progress import track
from hrm_edge.samples import Sample

from ..recipe import Recipe
from ..reference.figures import Tally
from ..reference.forward import Batch, Read, Variant
from ..reference.predict import predict
from .grid import Quantized, dequantize

TOGETHER = 16  # variants in one forward
SAMPLES = 24
NOISE = 0.02  # of the normed states' unit RMS; small, so that the divergence grows as its square


class _One(Variant):
    """The original model with one linear quantized."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def weight(self, name: str, turn: int) -> np.ndarray | None:
        return self._values if name == self._name else None


class _Noisy(Variant):
    """The original model with noise on the normed states that one pass's linears read."""

    def __init__(self, turn: int) -> None:
        self._turn, self._random = turn, np.random.default_rng(turn)

    def inputs(self, name: str, turn: int, x: np.ndarray) -> np.ndarray:
        if turn != self._turn or (GQKV not in name and GATE_UP not in name):
            return x
        return x + np.float32(NOISE) * self._random.standard_normal(x.shape, np.float32)


def pass_sensitivities(config: HRMTextConfig, read: Read, samples: Sequence[Sample]) -> np.ndarray:
    """How much an error in each pass changes the predictions [passes]; 1 on a stack's average.

    The mean KL divergence that equal noise causes in that pass alone.
    """
    batch, stacks = Batch.of(samples[:SAMPLES], config.prefix_lm), np.array(config.passes)
    noisy = [_Noisy(turn) for turn in range(len(stacks))]
    found = np.array(_divergences(config, read, batch, noisy))
    for stack in STACKS:
        found[stacks == stack] /= found[stacks == stack].mean()
    return found


def wider(
    config: HRMTextConfig,
    read: Read,
    samples: Sequence[Sample],
    rounded: Callable[[str], Quantized],
    recipe: Recipe,
) -> list[str]:
    """The linears to give 8 bits: those with the largest divergence per weight come first.

    Taken as long as the mean over all weights of the stacks stays within `recipe.target_bits`.
    """
    assert recipe.target_bits is not None
    shapes = config.tensor_shapes()
    sizes = {n: int(np.prod(s)) for n, s in shapes.items() if is_linear(n)}
    divergence = sensitivities(config, read, samples, rounded, recipe)
    room = (recipe.target_bits - recipe.bits) / (8 - recipe.bits) * sum(sizes.values())
    chosen = []
    for name in sorted(sizes, key=lambda n: -divergence[n] / sizes[n]):
        if sizes[name] <= room:
            chosen.append(name)
            room -= sizes[name]
    return chosen


def sensitivities(
    config: HRMTextConfig,
    read: Read,
    samples: Sequence[Sample],
    rounded: Callable[[str], Quantized],
    recipe: Recipe,
) -> dict[str, float]:
    """Mean KL divergence (nats) of the model with one linear quantized, for each linear."""
    shapes = config.tensor_shapes()
    names = [n for n in shapes if is_linear(n)]
    batch = Batch.of(samples[:SAMPLES], config.prefix_lm)
    found: dict[str, float] = {}
    for start in track(range(0, len(names), TOGETHER), "sensitivity"):
        part = names[start : start + TOGETHER]
        ones = [_One(n, dequantize(rounded(n), recipe.bits, shapes[n][1])) for n in part]
        found |= dict(zip(part, _divergences(config, read, batch, ones), strict=True))
    return found


def _divergences(
    config: HRMTextConfig, read: Read, batch: Batch, variants: Sequence[Variant]
) -> list[float]:
    """Mean KL divergence (nats) of each variant from the original model."""
    reference, *others = predict(config, read, batch, [Variant(), *variants])
    found: list[float] = []
    for logits in others:
        tally = Tally()
        tally.add(logits, batch.targets, batch.answers, reference)
        divergence = tally.figures().kl_mean
        assert divergence is not None
        found.append(divergence)
    return found

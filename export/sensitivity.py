"""Which linears deserve more bits: the divergence that each one's rounding causes alone."""

from collections.abc import Callable, Sequence

import numpy as np

from hrm_edge.config import STACKS, HRMTextConfig
from hrm_edge.progress import track
from hrm_edge.samples import Sample

from .figures import Tally
from .forward import EMBEDDING, HEAD, Z_L_INIT, Batch, Read, Variant
from .quantize import Quantized, dequantize
from .recipe import Recipe
from .report import predict

TOGETHER = 16  # variants in one forward
SAMPLES = 24


class _One(Variant):
    """The original model with one linear quantized."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def weight(self, name: str, turn: int) -> np.ndarray | None:
        return self._values if name == self._name else None


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
    sizes = {n: int(np.prod(s)) for n, s in shapes.items() if n not in (EMBEDDING, HEAD, Z_L_INIT)}
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
    names = [n for n in shapes if any(f"model.{s}_module" in n for s in STACKS)]
    batch = Batch.of(samples[:SAMPLES], config.prefix_lm)
    found: dict[str, float] = {}
    for start in track(range(0, len(names), TOGETHER), "sensitivity"):
        part = names[start : start + TOGETHER]
        ones = [_One(n, dequantize(rounded(n), recipe.bits, shapes[n][1])) for n in part]
        reference, *others = predict(config, read, batch, [Variant(), *ones])
        for name, logits in zip(part, others, strict=True):
            tally = Tally()
            tally.add(logits, batch.targets, batch.answers, reference)
            divergence = tally.figures().kl_mean
            assert divergence is not None
            found[name] = divergence
    return found

"""Where the error of a quantized model is made: a picture by layer and pass.

The error of a state is |x - x0| / |x0| over the residual stream after a layer, x0 being the
original's. What a layer adds to it over the layers and passes is how the damage grows; the jump
back at each stack's exit is MagicNorm's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hrm_edge.config import HRMTextConfig
from hrm_edge.samples import Sample

from ..reference.forward import Batch, Read, States, Variant, forward

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def residual_errors(
    config: HRMTextConfig, read: Read, samples: Sequence[Sample], variants: Sequence[Variant]
) -> np.ndarray:
    """Relative error [variants, passes, layers] of each variant's residuals."""
    shape = (len(variants), len(config.passes), config.layers_per_stack)
    off, size = np.zeros(shape), np.zeros(shape[1:])

    def watch(turn: int, layer: int, residuals: States) -> None:
        original, *others = residuals
        size[turn, layer] += float(np.square(original).sum())
        for i, x in enumerate(others):
            off[i, turn, layer] += float(np.square(x - original).sum())

    forward(config, read, Batch.of(samples, config.prefix_lm), [Variant(), *variants], watch)
    return np.sqrt(off / size)


def plot(errors: np.ndarray, names: Sequence[str], passes: Sequence[str], out: Path) -> None:
    """Draw `errors` as curves over all layers in order, a line for each name, into `out`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    layers = errors.shape[2]
    for name, found in zip(names, errors, strict=True):
        axes.plot(np.arange(1, found.size + 1), found.reshape(-1), marker=".", label=name)
    _mark_passes(axes, passes, layers)
    axes.set(ylabel="relative error of the residual stream", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


def _mark_passes(axes: "Axes", passes: Sequence[str], layers: int) -> None:
    for turn in range(1, len(passes)):
        axes.axvline(turn * layers + 0.5, color="0.8", linewidth=0.8)
    axes.set_xticks([turn * layers + (layers + 1) / 2 for turn in range(len(passes))], passes)
    axes.set_xlabel(f"passes of the two stacks, {layers} layers each")

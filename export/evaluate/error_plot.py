"""Where the error of a quantized model is made: a picture by layer and pass.

What a layer adds to the error of the residual stream, over the layers and passes, is how the damage
grows; the jump back at each stack's exit is MagicNorm's. Below it, what each pass leaves: how far
the carried state has turned away from the original's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .states import StateErrors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(found: StateErrors, names: Sequence[str], passes: Sequence[str], out: Path) -> None:
    """Draw errors as curves over all layers, and 1 - cosine by pass, a line for each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes, below = figure.subplots(2, height_ratios=[5, 3])
    layers = found.errors.shape[2]
    for name, errors, cosines in zip(names, found.errors, found.cosines, strict=True):
        axes.plot(np.arange(1, errors.size + 1), errors.reshape(-1), marker=".", label=name)
        middles = np.arange(len(passes)) * layers + (layers + 1) / 2
        below.plot(middles, np.maximum(1 - cosines, 1e-9), marker=".", label=name)
    for each in (axes, below):
        _mark_passes(each, passes, layers)
    axes.set(ylabel="relative error of the residual stream", yscale="log")
    below.set(ylabel="1 - cosine of the state", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


def _mark_passes(axes: "Axes", passes: Sequence[str], layers: int) -> None:
    for turn in range(1, len(passes)):
        axes.axvline(turn * layers + 0.5, color="0.8", linewidth=0.8)
    axes.set_xticks([turn * layers + (layers + 1) / 2 for turn in range(len(passes))], passes)
    axes.set_xlabel(f"passes of the two stacks, {layers} layers each")

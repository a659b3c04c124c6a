"""Pictures of what bench measured, by matplotlib, which is imported only here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hrm_edge.errors import HRMEdgeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..bench import Result


def plot_results(results: Sequence["Result"], path: Path) -> None:
    """A bar for each test, with its deviation. Raises HRMEdgeError."""
    with_axes = _figure(path)
    names, rates = [r.test for r in results], [r.avg_ts for r in results]
    bars = with_axes.barh(names, rates, xerr=[r.stddev_ts for r in results], color="#4878a8")
    with_axes.bar_label(bars, [f"{rate:.1f}" for rate in rates], padding=4)
    with_axes.invert_yaxis()
    with_axes.margins(x=0.15)
    with_axes.set(xlabel="tokens per second", title=results[0].model)
    _save(with_axes, path)


def plot_sustained(points: Sequence[tuple[float, float]], title: str, path: Path) -> None:
    """Tokens per second over time. Raises HRMEdgeError."""
    axes = _figure(path)
    axes.plot([s / 60 for s, _ in points], [rate for _, rate in points], color="#4878a8")
    axes.set(xlabel="minutes", ylabel="tokens per second", title=title)
    axes.set_ylim(bottom=0)
    _save(axes, path)


def _figure(path: Path) -> "Axes":
    if path.suffix != ".png":
        raise HRMEdgeError(f"{path}: a plot is a .png")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise HRMEdgeError("--plot needs matplotlib: pip install 'hrm-edge[plot]'") from None
    return Figure(figsize=(8, 4.5), layout="constrained").subplots()


def _save(axes: "Axes", path: Path) -> None:
    try:
        axes.get_figure(root=True).savefig(path, dpi=150)  # type: ignore[union-attr]
    except OSError as error:
        raise HRMEdgeError(f"{path}: cannot be written ({error.strerror})") from None

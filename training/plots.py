"""Curves of a run as PNG files: the loss in training and on held-out data, exact match per task."""

from pathlib import Path

from matplotlib.figure import Figure

from .evaluate import Score, mean_loss
from .metrics import read_metrics


def plot_run(out: Path) -> list[Path]:
    """Write loss.png and, where the run was evaluated, exact_match.png; return their paths."""
    lines = read_metrics(out / "metrics.jsonl")
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    scored = [(line["step"], line["scores"]) for line in lines if "scores" in line]
    written = []
    if losses:
        curves = {"training loss": losses}
        if scored:
            of = {step: {n: Score(**s) for n, s in scores.items()} for step, scores in scored}
            curves["validation loss"] = [(step, mean_loss(scores)) for step, scores in of.items()]
        written.append(_plot(out / "loss.png", curves, "loss (nats per token)"))
    if scored:
        tasks = list(scored[-1][1])
        curves = {t: [(step, 100 * s[t]["exact_match"]) for step, s in scored] for t in tasks}
        written.append(_plot(out / "exact_match.png", curves, "exact match (%)"))
    return written


def _plot(path: Path, curves: dict[str, list[tuple[int, float]]], label: str) -> Path:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path

"""`hrm-edge bench`: llama-bench's flags and table for a bundle."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrm_edge.errors import HRMEdgeError
from hrm_edge.number_list import Numbers
from hrm_edge.progress import status, track

from .interrupt import interruptible
from .options import (
    BUNDLE,
    FAST,
    H_CYCLES,
    KV_SHARE,
    L_CYCLES,
    PROVIDER,
    THREADS,
    WEIGHT_CACHE,
    taken,
)

if TYPE_CHECKING:
    from ..bench import Bench, Result, Test


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("-p", "--n-prompt", type=Numbers(), default="512", show_default=True)
@click.option("-n", "--n-gen", type=Numbers(), default="128", show_default=True)
@click.option(
    "-d",
    "--n-depth",
    type=Numbers(),
    default="0",
    show_default=True,
    help="Tokens in front of those that -n decodes. A prompt is one call and has no depth.",
)
@click.option(
    "--parallel",
    type=Numbers(),
    default="1",
    show_default=True,
    help="Rows that decode at once, -n tokens each; t/s are those of all.",
)
@click.option("-r", "--repetitions", default=5, show_default=True)
@THREADS
@H_CYCLES
@L_CYCLES
@FAST
@PROVIDER
@WEIGHT_CACHE
@KV_SHARE
@click.option("-o", "--output", type=click.Choice(["md", "json", "csv"]), default="md")
@click.option("--no-warmup", is_flag=True, help="Count the first run of a test as well.")
@click.option("--sustained", type=float, metavar="MINUTES", help="Decode that long; see it slow.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the results as a PNG.")
def command(
    bundle: Path,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    parallel: tuple[int, ...],
    repetitions: int,
    output: str,
    no_warmup: bool,
    sustained: float | None,
    plot: Path | None,
    **loading: Any,
) -> None:
    """Measure prefill (pp) and decode (tg) of BUNDLE in tokens per second.

    -p, -n, -d and --parallel take several numbers, joined by commas.
    """
    how = taken(loading)
    _check(repetitions, sustained, plot)
    from ..bench import Bench, plan

    if not all(parallel):
        raise HRMEdgeError("--parallel is 0, expected 1 or more")
    tests = plan(n_prompt, n_gen, n_depth, parallel)
    if sustained is not None:
        tests = [test for test in tests if test.n_gen][-1:]
        if not tests:
            raise HRMEdgeError("--sustained decodes; give -n more than 0")
    with status("loading the bundle"):
        bench = Bench.open(bundle, tests, how)
    if sustained is not None:
        _sustain(bench, tests[0], sustained, output, plot)
        return
    runs = (bench.run(test, repetitions, not no_warmup) for test in track(tests, "bench"))
    with contextlib.closing(interruptible(runs, bench.session.cancel)) as measured:
        results = list(measured)
    _show(results, output, plot)


def _check(repetitions: int, sustained: float | None, plot: Path | None) -> None:
    if repetitions < 1:
        raise HRMEdgeError(f"repetitions is {repetitions}, expected 1 or more")
    if sustained is not None and not 0 < sustained < float("inf"):
        raise HRMEdgeError(f"sustained is {sustained}, expected minutes, more than 0")
    if plot is not None and (plot.suffix != ".png" or not plot.parent.is_dir()):
        raise HRMEdgeError(f"plot is {plot}, expected a .png in a directory that exists")


def _show(results: "list[Result]", output: str, plot: Path | None) -> None:
    from .. import bench

    shown = {"md": bench.as_markdown, "json": bench.as_json, "csv": bench.as_csv}[output]
    click.echo(shown(results))
    if output == "md":
        click.echo(_memory(results[-1]), err=True)
    if plot is not None:
        from .bench_plot import plot_results

        plot_results(results, plot)


def _memory(result: "Result") -> str:
    sizes = (("peak", result.peak_memory), ("anonymous", result.anonymous_memory))
    return ", ".join(f"{n} memory {s / 2**20:.0f} MiB" for n, s in sizes if s is not None)


def _sustain(bench: "Bench", test: "Test", minutes: float, output: str, plot: Path | None) -> None:
    """Print every run as it ends, then how the last tenth compares with the first."""
    import json

    click.echo({"md": "| seconds | t/s |\n| ---: | ---: |", "csv": "seconds,t/s"}.get(output, "["))
    form = {"md": "| {:.1f} | {:.2f} |", "csv": "{:.1f},{:.2f}"}.get(output)
    points: list[tuple[float, float]] = []
    for point in interruptible(bench.sustained(test, minutes), bench.session.cancel):
        if form is None:
            click.echo((",\n" if points else "") + json.dumps(point), nl=False)
        else:
            click.echo(form.format(*point))
        points.append(point)
    if form is None:
        click.echo("\n]")
    few = max(1, len(points) // 10)
    first, last = (sum(r for _, r in part) / few for part in (points[:few], points[-few:]))
    click.echo(f"{test.name}: {first:.2f} t/s at first, {last:.2f} at last", err=True)
    if plot is not None:
        from .bench_plot import plot_sustained

        plot_sustained(points, f"{bench.facts['model']}, {test.name}", plot)

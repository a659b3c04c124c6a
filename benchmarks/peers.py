"""Our bundle beside its peers on the same weights: alternating runs, medians, memory, a picture.

    python -m benchmarks.peers BUNDLE MODEL.gguf [--checkpoint DIR] -o benchmarks/results/xl

writes a markdown table, every single timing as JSON, and a PNG. Each round starts each engine in a
process of its own. llama.cpp runs with flash attention on and off, since each is the faster one
somewhere. Run it on an otherwise idle machine: all engines use all cores, and one that waits for
its threads by spinning suffers from any other load far more than its share.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.bandwidth import read_bandwidth
from benchmarks.llamacpp import RELEASE
from hrm_edge.bundle import Manifest
from hrm_edge.cli_inspect import weight_bytes_per_token

Report = dict[str, Any]  # benchmarks.llamacpp.Report.to_dict()


@dataclass(frozen=True)
class Plan:
    """What is measured in each round."""

    depths: str
    prefill: int
    decode: int
    repeats: int
    threads: int


@dataclass(frozen=True)
class Engine:
    """A column of the table: how to start it."""

    name: str
    command: tuple[str, ...]  # module of benchmarks, then its arguments
    model: Path

    def run(self, plan: Plan) -> Report:
        """Its report, from a fresh process."""
        counts = ("prefill", "decode", "repeats", "threads")
        options = [f"--depth={plan.depths}", *(f"--{c}={getattr(plan, c)}" for c in counts)]
        module, *rest = self.command
        command = [sys.executable, "-m", f"benchmarks.{module}", *rest, str(self.model), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(f"{self.name} failed: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout)

    @property
    def bytes(self) -> int:
        """Size of the model's file or of all files in its directory."""
        files = self.model.iterdir() if self.model.is_dir() else [self.model]
        return sum(file.stat().st_size for file in files)


def engines(bundle: Path, gguf: Path, checkpoint: Path | None) -> list[Engine]:
    """Ours first."""
    found = [
        Engine("hrm-edge", ("ours",), bundle),
        Engine("llama.cpp", ("llamacpp", "--json", "--flash=off"), gguf),
        Engine("llama.cpp, flash attention", ("llamacpp", "--json", "--flash=on"), gguf),
        Engine("onnxruntime-genai, our bundle", ("others", "onnxruntime-genai"), bundle),
    ]
    if checkpoint:
        found.append(Engine("transformers, float32", ("others", "transformers"), checkpoint))
    return found


def series(reports: Sequence[Report]) -> dict[str, list[float]]:
    """All milliseconds of all rounds, by what was measured."""
    found: dict[str, list[float]] = {}
    for report in reports:
        for timing in report["prefill"]:
            found.setdefault(f"prefill of {timing['tokens']}", []).extend(timing["ms"])
        for timing in report["decode"]:
            found.setdefault(f"decode at context {timing['depth']}", []).extend(timing["ms"])
        found.setdefault("load", []).append(1000 * report["load_s"])
    return found


def table(reports: dict[str, list[Report]], sizes: dict[str, int]) -> str:
    """Markdown: medians with the range of the middle half; memory is the largest of all rounds."""
    rows = ["| | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    timings = {name: series(found) for name, found in reports.items()}
    for key in next(iter(timings.values())):
        rows.append(_row(f"{key}, ms", [_spread(t[key]) for t in timings.values()]))
    for when in ("after_load", "after_run"):
        for kind in ("anonymous", "resident", "peak"):
            most = [max(r[when][kind] for r in found) / 1e6 for found in reports.values()]
            label = f"{kind} memory {when.replace('_', ' ')}, MB"
            rows.append(_row(label, [f"{value:.0f}" for value in most]))
    rows.append(_row("files, MB", [f"{sizes[name] / 1e6:.0f}" for name in reports]))
    return "\n".join(rows)


def ratios(reports: dict[str, list[Report]]) -> str:
    """For each timing, the best time of llama.cpp over ours."""
    timings = {name: series(found) for name, found in reports.items()}
    ours, *_ = timings.values()
    peers = [t for name, t in timings.items() if name.startswith("llama.cpp")]
    lines = []
    for key, values in ours.items():
        best = min(statistics.median(t[key]) for t in peers)
        lines.append(f"- {key}: {best / statistics.median(values):.2f}")
    return "llama.cpp's time (the faster of its two settings) over ours:\n\n" + "\n".join(lines)


def limit(reports: list[Report], weights: int, bandwidth: float) -> str:
    """How much of the time of a token at the least context goes into reading the weights."""
    decode = next(k for k in series(reports) if k.startswith("decode"))
    least = 1000 * weights / bandwidth
    share = least / statistics.median(series(reports)[decode])
    return (
        f"Memory reads {bandwidth / 1e9:.1f} GB/s here. hrm-edge reads {weights / 1e9:.2f} GB of "
        f"weights a token: {least:.0f} ms, {100 * share:.0f} % of {decode}."
    )


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "onnxruntime": version("onnxruntime"),
        "onnxruntime-genai": version("onnxruntime-genai"),
        "llama.cpp": f"node-llama-cpp's library, {RELEASE}",
        "hrm-edge": version("hrm-edge"),
        "python": platform.python_version(),
    }


def plot(reports: dict[str, list[Report]], path: Path) -> None:
    """Decode time over context, a line for each engine with the range of the middle half."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, found in reports.items():
        points = {k: v for k, v in series(found).items() if k.startswith("decode")}
        depths = [int(key.rsplit(" ", 1)[1]) for key in points]
        middles = [statistics.median(v) for v in points.values()]
        quarters = [statistics.quantiles(v, n=4) for v in points.values()]
        below = [m - q[0] for m, q in zip(middles, quarters, strict=True)]
        above = [q[2] - m for m, q in zip(middles, quarters, strict=True)]
        axes.errorbar(depths, middles, (below, above), label=name, marker="o", capsize=3)
    axes.set(xlabel="tokens in context", ylabel="ms a token", title="Decode")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _row(label: str, cells: list[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    if len(values) < 3:
        return f"{statistics.median(values):.1f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("gguf", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(exists=True, path_type=Path), help="Adds transformers."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Without ending.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--depths", default="0,256,1000", show_default=True)
@click.option("--prefill", default=256, show_default=True)
@click.option("--decode", default=16, show_default=True)
@click.option("--repeats", default=1, show_default=True, help="Prefills a round.")
@click.option("--threads", default=2, show_default=True)
def main(
    bundle: Path, gguf: Path, checkpoint: Path | None, out: Path, rounds: int, **options: Any
) -> None:
    """Measure BUNDLE and GGUF in turns; write OUT.md, OUT.json and OUT.png."""
    plan, about, running = Plan(**options), machine(), engines(bundle, gguf, checkpoint)
    bandwidth = read_bandwidth(plan.threads)
    reports: dict[str, list[Report]] = {engine.name: [] for engine in running}
    for i in range(rounds):
        for engine in running:
            click.echo(f"round {i + 1} of {rounds}: {engine.name}", err=True)
            reports[engine.name].append(engine.run(plan))
    sizes = {engine.name: engine.bytes for engine in running}
    manifest = Manifest.read(bundle)
    weights = weight_bytes_per_token(manifest.model, manifest.quantization)
    text = [table(reports, sizes), ratios(reports)]
    text.append(limit(reports["hrm-edge"], weights, bandwidth))
    text.append(", ".join(f"{k} {v}" for k, v in about.items()) + f"; {rounds} rounds, {plan}.")
    raw = {"machine": about, "plan": vars(plan), "bytes": sizes, "bandwidth": bandwidth}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(raw | {"reports": reports}, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    plot(reports, out.with_suffix(".png"))
    click.echo("\n\n".join(text))


if __name__ == "__main__":
    main()

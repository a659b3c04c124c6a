"""Our bundle beside its peers on the same weights: alternating runs, medians, memory, a picture.

    python -m benchmarks.peers XL --work runs/peers -o runs/peers/figures

makes a random checkpoint of HRM-Text-1B's shape (or takes the one whose directory is given),
converts the checkpoint for each peer, fetches llama.cpp, and writes a markdown table, every single
timing as JSON, and a PNG. Each round starts each engine in a process of its own. llama.cpp runs as
it comes (it chooses flash attention) and with flash attention off, since each is the faster one
somewhere; and compiled for this processor, if `pip install llama-cpp-python` has been run, at short
contexts only, as transformers is. Run it on an otherwise idle machine: all engines use all cores,
and one that waits for its threads by spinning suffers from any other load far more than its share.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.bandwidth import read_bandwidth
from benchmarks.llamacpp import RELEASE, library_folder
from benchmarks.make_checkpoint import SIZES, config, make
from hrm_edge.bundle import Manifest
from hrm_edge.cli_inspect import weight_bytes_per_token
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export

RawReport = dict[str, Any]  # benchmarks.measure.Report.to_dict()
OURS, LLAMACPP = "hrm-edge", "llama.cpp"
SHORT = 256  # tokens, beyond which slow or second forms of a peer are not measured


@dataclass(frozen=True)
class Plan:
    """What is measured in each round."""

    depths: tuple[int, ...]
    decode: int
    threads: int


@dataclass(frozen=True)
class Engine:
    """A column of the table: a runtime of benchmarks.engines and what it loads."""

    name: str
    runtime: str
    model: Path
    most: int | None = None  # tokens of context up to which it is measured

    def run(self, plan: Plan) -> RawReport:
        """Its report, from a fresh process."""
        depths = ",".join(str(d) for d in plan.depths if self.most is None or d <= self.most)
        command = [sys.executable, "-m", "benchmarks.engines", self.runtime, str(self.model)]
        command += [f"--depths={depths}", f"--decode={plan.decode}", f"--threads={plan.threads}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(f"{self.name} failed: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout)

    @property
    def bytes(self) -> int:
        """Size of the model's file or of all files in its directory."""
        files = self.model.iterdir() if self.model.is_dir() else [self.model]
        return sum(file.stat().st_size for file in files)


def engines(checkpoint: Path, work: Path, optional: Sequence[str], plan: Plan) -> list[Engine]:
    """Ours first. Converts `checkpoint` where `work` does not hold the result yet."""
    bundle, gguf = work / "int4", work / "q4_0"
    if not bundle.exists():
        export(checkpoint, bundle)
    if not gguf.exists():
        export(checkpoint, gguf, target="gguf")
    gguf /= "model.gguf"
    found = [Engine(OURS, "hrm-edge", bundle)]
    found += [Engine(name, name, gguf) for name in (LLAMACPP, "llama.cpp, flash attention off")]
    if importlib.util.find_spec("llama_cpp"):
        name = "llama.cpp, compiled here"
        found.append(Engine(name, name, gguf, SHORT))
    found.append(Engine("onnxruntime-genai, our bundle", "onnxruntime-genai", bundle))
    if "executorch" in optional:
        pte = work / "pte"
        if not pte.exists():
            room = max(plan.depths) + plan.decode + 3  # its KV cache has that size from the start
            export(checkpoint, pte, target="executorch", max_seq_len=room)
        found.append(Engine("hrm-edge, ExecuTorch", "hrm-edge", pte))
    if "transformers" in optional:
        found.append(Engine("transformers, float32", "transformers", checkpoint, SHORT))
    return found


def install() -> None:
    """Fetch the prebuilt llama.cpp if it is not there."""
    try:
        library_folder()
    except HRMEdgeError:
        subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=Path(__file__).parent, check=True)


def series(reports: Sequence[RawReport]) -> dict[str, list[float]]:
    """All milliseconds of all rounds, by what was measured."""
    found: dict[str, list[float]] = {}
    for report in reports:
        for timing in report["prefill"]:
            found.setdefault(f"prefill of {timing['tokens']}", []).extend(timing["ms"])
        for timing in report["decode"]:
            found.setdefault(f"decode at context {timing['depth']}", []).extend(timing["ms"])
        found.setdefault("load", []).append(1000 * report["load_s"])
    return found


def energy(reports: Sequence[RawReport]) -> dict[str, list[float]]:
    """Joules a token, by what was measured; empty where the machine does not tell."""
    found: dict[str, list[float]] = {}
    for timing in (t for report in reports for t in report["prefill"] + report["decode"]):
        if timing.get("joules") is not None:
            kind = "prefill of" if timing["tokens"] > 1 else "decode at context"
            tokens = timing["tokens"] * len(timing["ms"])
            found.setdefault(f"{kind} {timing['depth']}", []).append(timing["joules"] / tokens)
    return found


def table(reports: dict[str, list[RawReport]], sizes: dict[str, int]) -> str:
    """Markdown: medians with the range of the middle half; memory is the largest of all rounds."""
    rows = ["| | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    timings = [series(found) for found in reports.values()]
    rows += [_row(f"{key}, ms", (_spread(t.get(key)) for t in timings)) for key in timings[0]]
    drawn = [energy(found) for found in reports.values()]
    rows += [_row(f"{key}, J a token", (_spread(d.get(key)) for d in drawn)) for key in drawn[0]]
    for when in ("after_load", "after_run"):
        for kind in ("anonymous", "resident", "peak"):
            most = [max(r[when][kind] for r in found) / 1e6 for found in reports.values()]
            label = f"{kind} memory {when.replace('_', ' ')}, MB"
            rows.append(_row(label, (f"{value:.0f}" for value in most)))
    rows.append(_row("files, MB", (f"{sizes[name] / 1e6:.0f}" for name in reports)))
    return "\n".join(rows)


def ratios(reports: dict[str, list[RawReport]]) -> str:
    """For each timing, llama.cpp's time over ours: as it comes, and in its fastest form."""
    timings = {name: series(found) for name, found in reports.items()}
    rows = ["| llama.cpp's time over ours | as it comes | its fastest form here |", "|---|---|---|"]
    for key, values in timings[OURS].items():
        peers = {n: t[key] for n, t in timings.items() if n.startswith(LLAMACPP) and key in t}
        times = {name: statistics.median(found) for name, found in peers.items()}
        best, own = min(times, key=lambda n: times[n]), statistics.median(values)
        form = best.removeprefix(LLAMACPP).strip(", ") or "as it comes"
        ratio = f"{times[best] / own:.2f} ({form})"
        rows.append(_row(key, (f"{times[LLAMACPP] / own:.2f}", ratio)))
    return "\n".join(rows)


def limit(reports: list[RawReport], weights: int, bandwidth: float) -> str:
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
    packages = ("onnxruntime", "onnxruntime-genai", "llama-cpp-python", "executorch")
    packages += ("transformers", "torch", "hrm-edge")
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "llama.cpp": f"node-llama-cpp's library, {RELEASE}",
        **{p: version(p) for p in packages if importlib.util.find_spec(MODULES.get(p, p))},
        "python": platform.python_version(),
    }


MODULES = {
    "onnxruntime-genai": "onnxruntime_genai",
    "llama-cpp-python": "llama_cpp",
    "hrm-edge": "hrm_edge",
}


def plot(reports: dict[str, list[RawReport]], path: Path) -> None:
    """Time of a token and of a prompt over the context, with the range of the middle half."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = (("decode", "ms a token"), ("prefill", "ms a prompt"))
    for axes, (kind, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, found in reports.items():
            points = {k: v for k, v in series(found).items() if k.startswith(kind)}
            depths = [int(key.rsplit(" ", 1)[1]) for key in points]
            quarters = [_quarters(values) for values in points.values()]
            middles = [middle for _, middle, _ in quarters]
            below = [middle - low for low, middle, _ in quarters]
            above = [high - middle for _, middle, high in quarters]
            axes.errorbar(depths, middles, (below, above), label=name, marker="o", capsize=3)
        axes.set(xlabel="tokens", ylabel=unit, title=kind.capitalize(), yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _row(label: str, cells: Iterable[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _spread(values: list[float] | None) -> str:
    if not values:
        return "not measured"
    low, middle, high = _quarters(values)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _quarters(values: list[float]) -> tuple[float, float, float]:
    """The median between the bounds of the middle half; of the least and most of a few values."""
    if len(values) < 4:
        return min(values), statistics.median(values), max(values)
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


@click.command()
@click.argument("checkpoint")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the converted models; what it holds already is taken as it is.",
)
@click.option("--also", multiple=True, type=click.Choice(["executorch", "transformers"]))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Without ending.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--depths", default="0,256,1024,2048", show_default=True)
@click.option("--decode", default=16, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(
    checkpoint: str,
    work: Path,
    also: tuple[str, ...],
    out: Path,
    rounds: int,
    depths: str,
    decode: int,
    threads: int,
) -> None:
    """Measure CHECKPOINT through each runtime in turns; write OUT.md, OUT.json and OUT.png.

    CHECKPOINT is a directory, or B, L or XL for random weights of that size.
    """
    install()
    source = Path(checkpoint)
    if checkpoint in SIZES:
        source = work / "checkpoint"
        if not source.exists():
            make(config(checkpoint), source)
    plan = Plan(tuple(int(d) for d in depths.split(",")), decode, threads)
    running = engines(source, work, also, plan)
    about = machine()
    bandwidth = read_bandwidth(threads)
    reports: dict[str, list[RawReport]] = {engine.name: [] for engine in running}
    for i in range(rounds):
        for engine in running:
            click.echo(f"round {i + 1} of {rounds}: {engine.name}", err=True)
            reports[engine.name].append(engine.run(plan))
    sizes = {engine.name: engine.bytes for engine in running}
    manifest = Manifest.read(running[0].model)
    weights = weight_bytes_per_token(manifest.model, manifest.quantization)
    text = [table(reports, sizes), ratios(reports), limit(reports[OURS], weights, bandwidth)]
    text.append(", ".join(f"{k} {v}" for k, v in about.items()) + f"; {rounds} rounds, {plan}.")
    raw = {"machine": about, "plan": vars(plan), "bytes": sizes, "bandwidth": bandwidth}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(raw | {"reports": reports}, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    plot(reports, out.with_suffix(".png"))
    click.echo("\n\n".join(text))


if __name__ == "__main__":
    main()

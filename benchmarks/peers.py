"""Our bundle beside llama.cpp's GGUF of the same shape: alternating runs, medians, ratios.

    python -m benchmarks.peers BUNDLE MODEL.gguf -o benchmarks/results/xl

writes a markdown table and every single timing as JSON. Each round starts each engine in a process
of its own. Run it on an otherwise idle machine: both engines spin on all cores.
"""

import json
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.llamacpp import RELEASE

Report = dict[str, Any]  # benchmarks.llamacpp.Report.to_dict()


@dataclass(frozen=True)
class Plan:
    """What is measured in each round."""

    depths: str
    prefill: int
    decode: int
    repeats: int
    threads: int


def run(module: str, model: Path, plan: Plan) -> Report:
    """One engine's report, from a fresh process."""
    options = [f"--depth={plan.depths}", f"--prefill={plan.prefill}", f"--decode={plan.decode}"]
    options += [f"--repeats={plan.repeats}", f"--threads={plan.threads}"]
    options += ["--json"] if module == "llamacpp" else []
    command = [sys.executable, "-m", f"benchmarks.{module}", str(model), *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def series(reports: list[Report]) -> dict[str, list[float]]:
    """All milliseconds of all rounds, by what was measured."""
    found: dict[str, list[float]] = {}
    for report in reports:
        for timing in report["prefill"]:
            found.setdefault(f"prefill of {timing['tokens']}", []).extend(timing["ms"])
        for timing in report["decode"]:
            found.setdefault(f"decode at context {timing['depth']}", []).extend(timing["ms"])
        found.setdefault("load", []).append(1000 * report["load_s"])
    return found


def table(ours: list[Report], theirs: list[Report]) -> str:
    """Markdown: medians with the range of the middle half, and llama.cpp's time over ours."""
    rows = ["| | hrm-edge | llama.cpp | ratio |", "|---|---|---|---|"]
    mine, peer = series(ours), series(theirs)
    for key in mine:
        ratio = statistics.median(peer[key]) / statistics.median(mine[key])
        rows.append(f"| {key}, ms | {_spread(mine[key])} | {_spread(peer[key])} | {ratio:.2f} |")
    for when in ("after_load", "after_run"):
        for kind in ("anonymous", "resident", "peak"):
            a, b = (max(r[when][kind] for r in reports) / 1e6 for reports in (ours, theirs))
            label = f"{kind} memory {when.replace('_', ' ')}, MB"
            rows.append(f"| {label} | {a:.0f} | {b:.0f} | {b / a:.2f} |")
    return "\n".join(rows)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "onnxruntime": version("onnxruntime"),
        "llama.cpp": f"node-llama-cpp's library, {RELEASE}",
        "hrm-edge": version("hrm-edge"),
        "python": platform.python_version(),
    }


def _spread(values: list[float]) -> str:
    if len(values) < 3:
        return f"{statistics.median(values):.1f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("gguf", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Without ending.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--depths", default="0,1000", show_default=True)
@click.option("--prefill", default=256, show_default=True)
@click.option("--decode", default=16, show_default=True)
@click.option("--repeats", default=1, show_default=True, help="Prefills a round.")
@click.option("--threads", default=2, show_default=True)
def main(bundle: Path, gguf: Path, out: Path, rounds: int, **options: Any) -> None:
    """Measure BUNDLE and GGUF in turns and write OUT.md and OUT.json."""
    plan = Plan(**options)
    ours, theirs = [], []
    for i in range(rounds):
        click.echo(f"round {i + 1} of {rounds}", err=True)
        ours.append(run("ours", bundle, plan))
        theirs.append(run("llamacpp", gguf, plan))
    text = table(ours, theirs)
    sizes = {p.name: sum(f.stat().st_size for f in _files(p)) for p in (bundle, gguf)}
    raw = {"machine": machine(), "plan": vars(plan), "bytes": sizes, "ours": ours, "peer": theirs}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    out.with_suffix(".md").write_text(f"{text}\n\n{about}; {rounds} rounds, {plan}.\n")
    click.echo(text)


def _files(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else [path]


if __name__ == "__main__":
    main()

"""MagicNorm within XNNPACK's delegates beside the C++ op hrm::magic_norm, which lies between them.

    python -m benchmarks.magic_norm

Exports a random model of HRM-Text-1B's widths with `--layers` layers a stack both ways, and times
single calls of the two in turns in one process: decoding one token, and a prefill of 64. Needs
g++, and an otherwise idle machine. Writes results/magic_norm.md and .json.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.make_checkpoint import config, tensors, write_tokenizer
from benchmarks.measure import clock
from benchmarks.peers import machine
from hrm_edge.bundle import Bundle
from hrm_edge.checkpoint import write_checkpoint
from hrm_edge.export import export
from hrm_edge.export.to_executorch.magic_norm_op import build
from hrm_edge.pte import LIBRARY
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from hrm_edge.runtime.session.protocol import Session

RESULTS = Path(__file__).parent / "results"
VOCAB = 1024  # small, so that the head does not blur what the layers take
DELEGATE, OP = "within the delegates", "as the op"
WAYS = {DELEGATE: False, OP: True}
PREFIX = 64
ABOUT = ("cpu", "load before", "executorch", "hrm-edge")


def bundles(work: Path, layers: int) -> dict[str, Bundle]:
    """The same model both ways, int4 in groups of 128."""
    write_tokenizer(work, VOCAB)
    shape = replace(config("XL", VOCAB), layers_per_stack=layers)
    write_checkpoint(work / "model", shape, tensors(shape), tokenizer=work)
    return {
        name: export(
            work / "model", work / name, "executorch", max_seq_len=1024, norm_op=op, gate=None
        )
        for name, op in WAYS.items()
    }


def alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; the order turns around from round to round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 - 2 * (i % 2)]:
            with clock(times[name]):
                calls[name]()
    return times


def measure(sessions: dict[str, Session], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Every single time of both kinds of call."""
    ids = [14 + i * 7919 % 250 for i in range(PREFIX)]

    def decode(session: Session) -> None:
        session.decode(ids[:1])
        session.rewind(1)

    kinds = {
        f"prefill of {PREFIX}": (lambda s: s.prefill(ids), rounds // 8),
        "decode": (decode, rounds),
    }
    found = {}
    for name, (call, count) in kinds.items():
        calls = {way: lambda s=session, c=call: c(s) for way, session in sessions.items()}
        alternate(calls, 3)  # unmeasured
        found[name] = alternate(calls, count)
    return found


def text(found: dict[str, dict[str, list[float]]], about: dict[str, str]) -> str:
    """Markdown."""
    lines = [
        "# MagicNorm within the delegates, and as the op hrm::magic_norm",
        "",
        f"`python -m benchmarks.magic_norm`: {about['model']}.",
        "Medians of single calls, taken in turns in one process, and the range of the middle half;",
        "the ratio is the median over rounds.",
        "",
        f"| call | {DELEGATE}, ms | {OP}, ms | op / delegates | calls |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, times in found.items():
        ratio = statistics.median(b / a for a, b in zip(times[DELEGATE], times[OP], strict=True))
        cells = []
        for way in WAYS:
            low, median, high = statistics.quantiles(times[way], n=4)
            cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.3f} | {len(times[OP])} |")
    lines += ["", *(f"- {key}: {value}" for key, value in about.items() if key != "model")]
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--layers", default=2, show_default=True, help="Of each stack.")
@click.option(
    "--rounds", default=400, show_default=True, help="Of decoding; an eighth of prefills."
)
@click.option("--threads", type=int, help="Default: one for each fast core.")
@click.option("-o", "--out", default=RESULTS / "magic_norm", type=click.Path(path_type=Path))
def main(layers: int, rounds: int, threads: int | None, out: Path) -> None:
    about = {name: value for name, value in machine().items() if name in ABOUT}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        library = work / "libmagic_norm.so"
        build(library)
        os.environ[LIBRARY] = str(library)
        made = bundles(work, layers)
        found = measure(
            {way: open_session(made[way], Loading(threads=threads)) for way in WAYS}, rounds
        )
    about["model"] = f"HRM-Text-1B's widths, {layers} layers a stack, int4, group 128"
    about["threads"] = str(threads or "default")
    out.with_suffix(".json").write_text(json.dumps({"about": about, "ms": found}, indent=1) + "\n")
    out.with_suffix(".md").write_text(text(found, about))
    click.echo(text(found, about))


if __name__ == "__main__":
    main()

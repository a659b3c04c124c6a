"""What fewer H cycles cost in quality and give in speed, and how well the first cycle drafts.

    python -m benchmarks.depth --work runs/speculation -o benchmarks/results/depth

takes the models of benchmarks.speculation (`--prepare` makes them). hrm-tiny answers held-out
questions at every depth; both models are timed, one token a call, the depths in turns. A drafting
cycle is judged on the greedy answers of the whole model, the first token left out: the prefix
yields it. Timings need an idle machine.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.make_checkpoint import SIZES
from benchmarks.make_checkpoint import config as sized
from benchmarks.peers import machine
from benchmarks.speculation import SHIPPED, models
from hrm_edge.bundle import Bundle
from hrm_edge.prompt import format_prompt
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.session.onnx_session import OnnxSession

CONTEXT = 256
Question = dict[str, str]


@dataclass(frozen=True)
class Quality:
    """Of one task: shares of questions answered to the letter, per depth; of tokens drafted."""

    exact: tuple[float, ...]  # with 1, 2, ... cycles
    drafts: float  # of the whole model's tokens, those that the first cycle alone gives too


def questions(path: Path, limit: int) -> dict[str, list[Question]]:
    """The first `limit` questions of each task."""
    found: dict[str, list[Question]] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if len(found.setdefault(row["task"], [])) < limit:
            found[row["task"]].append(row)
    return found


def quality(bundle: Path, asked: dict[str, list[Question]], threads: int) -> dict[str, Quality]:
    """Answer all questions at every depth."""
    cycles = Bundle.open(bundle).manifest.model.H_cycles
    at = [load(bundle, threads=threads, max_context=CONTEXT, h_cycles=n + 1) for n in range(cycles)]
    found = {}
    for task, rows in asked.items():
        right = [statistics.fmean(_exact(model, row) for row in rows) for model in at]
        agreed = [hit for row in rows for hit in _agreement(at[-1], row)]
        found[task] = Quality(tuple(right), statistics.fmean(agreed))
    return found


def _exact(model: Model, row: Question) -> bool:
    done = model.generate(row["instruction"], max_tokens=64, speculate=False)
    return done.text.strip() == row["response"]


def _agreement(model: Model, row: Question) -> list[bool]:
    """For each token of the model's answer behind the first: does the first cycle say the same?"""
    answer = model.generate(row["instruction"], max_tokens=64, speculate=False).tokens
    if len(answer) < 2:
        return []
    session = model.session
    assert isinstance(session, OnnxSession)
    session.start(model.tokenizer.encode(format_prompt(row["instruction"])))
    guessed = session.draft(answer[:-1]).argmax(-1)
    return [int(guess) == token for guess, token in zip(guessed, answer[1:], strict=True)]


def speed(bundle: Path, calls: int, threads: int) -> list[float]:
    """Median milliseconds of a call with one token, with 1, 2, ... cycles; a few tokens deep."""
    cycles = Bundle.open(bundle).manifest.model.H_cycles
    times: list[list[float]] = [[] for _ in range(cycles)]
    model = load(bundle, threads=threads, max_context=CONTEXT)
    session = model.session
    assert isinstance(session, OnnxSession)
    session.prefill(model.tokenizer.encode(format_prompt("Hello")))
    for _ in range(calls):
        for n, series in enumerate(times):
            session.h_cycles = n + 1
            started = time.perf_counter()
            session.decode([20])
            series.append(1000 * (time.perf_counter() - started))
            session.rewind(1)
    return [statistics.median(series[2:]) for series in times]


def table(found: dict[str, Quality]) -> str:
    """Markdown: a row for each task, in percent."""
    depths = range(1, len(next(iter(found.values())).exact) + 1)
    head = [*(f"exact, {n} of {depths[-1]}" for n in depths), "first cycle drafts right"]
    rows = [f"| | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for task, q in found.items():
        rows.append(_row(task, [*q.exact, q.drafts]))
    each = [[*q.exact, q.drafts] for q in found.values()]
    rows.append(_row("**mean**", [statistics.fmean(column) for column in zip(*each, strict=True)]))
    return "\n".join(rows)


def _row(label: str, shares: Sequence[float]) -> str:
    return f"| {label} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |"


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the models.")
@click.option("--checkpoint", default=SHIPPED, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Without ending.")
@click.option("--size", type=click.Choice([*SIZES, "none"]), default="XL", show_default=True)
@click.option("--limit", default=50, show_default=True, help="Questions of each task.")
@click.option("--calls", default=24, show_default=True, help="Timed calls of each depth.")
@click.option("--threads", default=2, show_default=True)
def main(
    work: Path,
    checkpoint: Path,
    out: Path | None,
    size: str,
    limit: int,
    calls: int,
    threads: int,
) -> None:
    """Measure quality and speed at every depth; write OUT.md and OUT.json."""
    every = models(work, None if size == "none" else sized(size), size, checkpoint)
    about = machine()
    found = quality(every[0].bundle, questions(SHIPPED / "questions.jsonl", limit), threads)
    times = {files.name: speed(files.bundle, calls, threads) for files in every}
    text = [f"In percent, int4 bundle, {limit} questions a task, greedy:", table(found)]
    for name, ms in times.items():
        shown = ", ".join(f"{value:.2f} with {n + 1}" for n, value in enumerate(ms))
        text.append(f"{name}, median ms of a token by H cycles: {shown}.")
    text.append(", ".join(f"{k} {v}" for k, v in about.items()) + f"; {threads} threads.")
    click.echo("\n\n".join(text))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text("\n\n".join(text) + "\n")
        raw = {"machine": about, "ms": times, "quality": {t: asdict(q) for t, q in found.items()}}
        out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()

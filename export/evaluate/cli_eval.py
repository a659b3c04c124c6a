"""`hrm-edge eval`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hrm_edge import shipped
from hrm_edge.bundle import Decoding
from hrm_edge.config import KV_SHARES
from hrm_edge.number_list import Numbers

LOST = 50.0  # perplexity from which texts are nothing that a model has learned


@click.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="JSONL; default: shipped prompts.")
@click.option("--reference", type=click.Path(path_type=Path), help="The original checkpoint.")
@click.option("--samples", type=click.IntRange(1), help="Use the first so many lines.")
@click.option("--max-kl", type=float, help="Fail above this mean KL divergence (nats).")
@click.option("--min-top1", type=float, help="Fail below this share of equal top tokens (0 to 1).")
@click.option("--l-cycles", type=Numbers(), help="L passes of each H cycle for the answers.")
@click.option(
    "--kv-share", type=click.Choice(KV_SHARES), default="none", help="Which passes share slots."
)
@click.option("--sources/--no-sources", default=True, help="Measure each source of error alone.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG: error by layer and pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    data: Path | None,
    reference: Path | None,
    samples: int | None,
    max_kl: float | None,
    min_top1: float | None,
    l_cycles: tuple[int, ...] | None,
    kv_share: str,
    sources: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Perplexity and exact match of BUNDLE; with --reference, also how far it is from that.

    Without --reference it needs nothing beyond the device runtime.
    """
    from .report import Gate, evaluate

    bundle = shipped.bundle(bundle)
    if reference is not None:
        reference = shipped.checkpoint(reference) or reference
    gate = Gate(data, max_kl, min_top1, sources=sources)
    how = Decoding(l_cycles, kv_share)
    quality = evaluate(bundle, gate, reference, samples, plot, how)
    if as_json:
        click.echo(json.dumps(quality, indent=2))
    else:
        click.echo("\n".join(quality_lines(quality)))
    gate.check(quality)


def quality_lines(quality: Mapping[str, Any]) -> list[str]:
    """The report as a table: reference, bundle, and what each source of error does alone."""
    if "skipped" in quality:
        return [f"quality not measured: {quality['skipped']}"]
    of = f" of {quality['lines']}" if quality.get("lines", 0) > quality["samples"] else ""
    head = f"{quality['samples']}{of} samples, {quality['tokens']} answer tokens "
    head += f"({quality['data']})"
    lines = [head, "                 mean KL   p99 KL   top-1  perplexity  exact match"]
    rows = {name: quality[name] for name in ("reference", "bundle") if name in quality}
    rows |= {f"  {name}": found for name, found in quality.get("sources", {}).items()}
    for name, f in rows.items():
        against = f"{f['kl_mean']:9.5f}{f['kl_p99']:9.4f}{f['top1']:8.1%}" if "top1" in f else ""
        lines.append(f"{name:15}{against:26}{f['perplexity']:12.3f}{f['exact_match']:13.1%}")
    if "states" in quality:
        turned = ", ".join(f"{1 - cosine:.1e}" for cosine in quality["states"])
        lines.append(f"states, 1 - cosine by pass: {turned}")
    if "reference" in quality:
        lines.append(verdict(quality))
    return lines + (_plan_lines(quality["fast"]) if quality.get("fast") else [])


VERDICTS = (  # up to that mean KL divergence (nats)
    (0.01, "hardly to be told from the original"),
    (0.05, "close to the original; single answers differ"),
    (0.2, "noticeably different from the original: try more bits, or --method gptq"),
)


def verdict(quality: Mapping[str, Any]) -> str:
    """The report in a line of words."""
    kl, top1 = quality["bundle"]["kl_mean"], quality["bundle"]["top1"]
    far = "another model than the original: use more bits"
    said = next((words for most, words in VERDICTS if kl <= most), far)
    lost = quality["reference"]["perplexity"]
    line = f"On these texts the bundle is {said} (KL {kl:.4f}, {top1:.0%} of top tokens equal)."
    if lost > LOST:
        line += f" The original itself is lost on them (perplexity {lost:.0f})."
    return line


def _plan_lines(fast: Mapping[str, Any]) -> list[str]:
    """What fewer passes and shared slots cost, and which of them --fast takes."""
    head = f"{fast['answers']} answers of the bundle, {fast['tokens']} tokens, the longest "
    lines = [head + f"{fast['longest']}", "--l-cycles  --kv-share  passes  cache"]
    lines[-1] += "  mean KL   top-1  same answers  exact match"
    for row in fast["plans"]:
        plan, share = ",".join(map(str, row["l_cycles"])), row["kv_share"]
        mark = "  <- --fast" if fast["recommended"].items() <= row.items() else ""
        lines.append(
            f"{plan:10}  {share:10}{row['work']:8.0%}{row['memory']:7.0%}{row['kl_mean']:9.5f}"
            f"{row['top1']:8.1%}{row['same_answers']:14.1%}{row['exact_match']:13.1%}{mark}"
        )
    return lines

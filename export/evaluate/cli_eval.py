"""`hrm-edge eval`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="JSONL; default: shipped prompts.")
@click.option("--reference", type=click.Path(path_type=Path), help="The original checkpoint.")
@click.option("--samples", type=click.IntRange(1), help="Use only so many lines.")
@click.option("--max-kl", type=float, help="Fail above this mean KL divergence (nats).")
@click.option("--min-top1", type=float, help="Fail below this share of equal top tokens (0 to 1).")
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
    sources: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Perplexity and exact match of BUNDLE; with --reference, also how far it is from that.

    Without --reference it needs nothing beyond the device runtime.
    """
    from .report import Gate, evaluate

    gate = Gate(data, max_kl, min_top1, sources=sources)
    quality = evaluate(bundle, gate, reference, samples, plot)
    if as_json:
        click.echo(json.dumps(quality, indent=2))
    else:
        click.echo("\n".join(quality_lines(quality)))
    gate.check(quality)


def quality_lines(quality: Mapping[str, Any]) -> list[str]:
    """The report as a table: reference, bundle, and what each source of error does alone."""
    if "skipped" in quality:
        return [f"quality not measured: {quality['skipped']}"]
    head = f"{quality['samples']} samples, {quality['tokens']} answer tokens ({quality['data']})"
    lines = [head, "                 mean KL   p99 KL   top-1  perplexity  exact match"]
    rows = {name: quality[name] for name in ("reference", "bundle") if name in quality}
    rows |= {f"  {name}": found for name, found in quality.get("sources", {}).items()}
    for name, f in rows.items():
        against = f"{f['kl_mean']:9.5f}{f['kl_p99']:9.4f}{f['top1']:8.1%}" if "top1" in f else ""
        lines.append(f"{name:15}{against:26}{f['perplexity']:12.3f}{f['exact_match']:13.1%}")
    return lines

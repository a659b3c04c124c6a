"""A quality report as a table and in words."""

from collections.abc import Mapping
from typing import Any

LOST = 50.0  # perplexity from which texts are nothing that a model has learned


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

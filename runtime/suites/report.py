"""What a run found beside the paper's figures, and what another run answered otherwise."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrm_edge import journal
from hrm_edge.errors import HRMEdgeError

from .run import ABOUT, Row
from .tasks import LocalSuite, Suite

Z = 1.959964  # of a normal distribution, for an interval of 95 %
Found = dict[str, Any]


def summary(rows: Sequence[Row], suites: Mapping[str, Suite | LocalSuite]) -> dict[str, Found]:
    """Figures of each suite; scores are shares from 0 to 1."""
    found: dict[str, Found] = {}
    for name, suite in suites.items():
        own = [row for row in rows if row["suite"] == name]
        if not own:
            continue
        values = [row["value"] for row in own]
        figures: Found = {"questions": len(own), "metric": suite.metric, "score": _mean(values)}
        figures["interval"] = interval(values)
        figures["strict"] = _mean([row["strict"] for row in own])
        if any("em" in row for row in own):
            figures["em"] = _mean([row.get("em", 0.0) for row in own])
        ends = [row["finish_reason"] for row in own if row["tokens"] > 0]
        figures["invalid"] = sum(row.get("invalid", False) for row in own)
        figures["unfit"] = len(own) - len(ends)
        figures["cut"] = ends.count("length") if suite.most > 1 else 0
        figures["looped"] = ends.count("repetition")
        figures["tokens"] = sum(row["tokens"] for row in own)
        figures["paper"] = suite.paper
        found[name] = figures
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean of `values`, 95 %: Wilson's for rights and wrongs, else the normal one."""
    n, mean = len(values), _mean(values)
    if all(value in (0, 1) for value in values):
        centre, spread = mean + Z * Z / (2 * n), mean * (1 - mean) / n + Z * Z / (4 * n * n)
        low, high = (centre + sign * Z * math.sqrt(spread) for sign in (-1, 1))
        return max(0.0, low / (1 + Z * Z / n)), min(1.0, high / (1 + Z * Z / n))
    variance = sum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    reach = Z * math.sqrt(variance / n)
    return max(0.0, mean - reach), min(1.0, mean + reach)


def lines(found: Mapping[str, Found]) -> list[str]:
    """`summary` as a table."""
    head = f"{'suite':12}{'questions':>10}{'score':>8}   95 % interval{'strict':>8}{'paper':>8}"
    table = [head]
    for name, f in found.items():
        low, high = f["interval"]
        paper = "" if f["paper"] is None else f"{f['paper']:.1f}"
        between = f"{low:.1%} to {high:.1%}"
        table.append(
            f"{name:12}{f['questions']:10}{f['score']:8.1%}{between:>17}{f['strict']:8.1%}{paper:>8}"
            f"  {_notes(f)}".rstrip()
        )
    if any(f["invalid"] for f in found.values()):
        table.append("An answer that is no valid letter scores 1/choices, in strict 0.")
    return table


def _notes(f: Found) -> str:
    parts = [f["metric"]]
    if "em" in f:
        parts.append(f"exact match {f['em']:.1%}")
    says = {"invalid": "no letter", "unfit": "did not fit", "cut": "cut", "looped": "in a loop"}
    parts += [f"{f[key]} {text}" for key, text in says.items() if f[key]]
    return ", ".join(parts)


def read(path: Path) -> list[Row]:
    """The scored answers in a file that another run made. Raises HRMEdgeError."""
    rows: list[Row] = []
    for row in journal.read(path).values():
        if row["id"] != ABOUT:
            if "value" not in row or "suite" not in row:
                raise HRMEdgeError(f"{path}: {row['id']!r} is not a scored answer")
            rows.append(row)
    return rows


def compare(rows: Sequence[Row], other: Sequence[Row]) -> dict[str, Found]:
    """By suite, over the same questions in both: what changed, and whether it is chance.

    `better` and `worse` count questions whose score rose or fell from `other` to `rows`; `p` is
    McNemar's exact test of their being equally likely.
    """
    before, found = {row["id"]: row for row in other}, dict[str, Found]()
    for row in rows:
        was = before.get(row["id"])
        if was is None or was.get("asked") != row.get("asked"):
            continue
        counts: Found = dict.fromkeys(("questions", "better", "worse", "texts"), 0)
        f = found.setdefault(row["suite"], counts)
        f["questions"] += 1
        f["better"] += row["value"] > was["value"]
        f["worse"] += row["value"] < was["value"]
        f["texts"] += row["text"] != was["text"]
    if not found:
        raise HRMEdgeError("no question was answered in both runs, so there is nothing to compare")
    for f in found.values():
        f["p"] = mcnemar(f["better"], f["worse"])
    return found


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact binomial probability that changes fall so unevenly by chance."""
    n, few = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(few + 1)) / 2**n)


def comparison_lines(found: Mapping[str, Found]) -> list[str]:
    """`compare` in words."""
    return [
        f"{name}: of {f['questions']} questions in both, {f['texts']} answers differ; "
        f"{f['better']} better, {f['worse']} worse than there (McNemar p = {f['p']:.3f})"
        for name, f in found.items()
    ]

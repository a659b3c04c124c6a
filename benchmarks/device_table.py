"""The table of docs/status.md from the reports in benchmarks/devices.

    python -m benchmarks.device_table

A report is what the app's benchmark saves: {"facts": {...}, "measurements": [{"test": "pp128",
"tokens": 128, "tok_per_s": [...]}, ...]}.
"""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "benchmarks" / "devices"
STATUS = ROOT / "docs" / "status.md"
BEGIN, END = "<!-- devices -->", "<!-- /devices -->"
FACTS = ("device", "model", "threads", "plan", "memory", "battery before", "battery after")


def read(path: Path) -> dict[str, Any]:
    """A report. Raises ValueError that names the file and what is wrong in it."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        facts, rows = report["facts"], report["measurements"]
        named = {fact: str(facts[fact]) for fact in FACTS if fact in facts}
        rates = {row["test"]: statistics.median(map(float, row["tok_per_s"])) for row in rows}
    except (ValueError, KeyError, TypeError, statistics.StatisticsError) as error:
        raise ValueError(f"{path}: not a report of the app's benchmark ({error!r})") from None
    if "device" not in named or "model" not in named or not rates:
        raise ValueError(f"{path}: a report names its device and model and has measurements")
    return {"facts": named, "rates": rates}


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown, a row a report; a sentence where there is none."""
    if not reports:
        return "No device has reported figures yet."
    tests = sorted({test for report in reports for test in report["rates"]})
    facts = [fact for fact in FACTS if any(fact in report["facts"] for report in reports)]
    lines = [_row([*facts, *(f"{test}, tok/s" for test in tests)])]
    lines.append("|" + "---|" * len(facts) + "---:|" * len(tests))
    for report in sorted(reports, key=lambda report: report["facts"]["device"]):
        rates = [f"{report['rates'][t]:.1f}" if t in report["rates"] else "" for t in tests]
        lines.append(_row([*(report["facts"].get(fact, "") for fact in facts), *rates]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def placed(status: str, made: str) -> str:
    """`status` with the table `made` between its marks."""
    before, _, rest = status.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{STATUS} has not both {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


if __name__ == "__main__":
    found = table([read(path) for path in sorted(REPORTS.glob("*.json"))])
    STATUS.write_text(placed(STATUS.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(found)

"""Reports of the app's benchmark become the table of docs/status.md."""

import json
from pathlib import Path

import pytest

from benchmarks import device_table
from benchmarks.device_table import REPORTS, STATUS, placed, read, table


def report(path: Path, device: str, rates: list[float], **facts: str) -> Path:
    """A file as core/Benchmark.kt writes it."""
    rows = [{"test": "tg64", "tokens": 64, "tok_per_s": rates}]
    content = {"facts": {"device": device, "model": "hrm-tiny", **facts}, "measurements": rows}
    path.write_text(json.dumps(content))
    return path


def test_a_row_a_report_with_the_median(tmp_path: Path) -> None:
    first = read(report(tmp_path / "b.json", "Maker B", [9, 1, 2.26], threads="4"))
    second = read(report(tmp_path / "a.json", "Maker A | x", [5], plan="2,2 cycle"))
    assert table([first, second]).splitlines() == [
        "| device | model | threads | plan | tg64, tok/s |",
        "|---|---|---|---|---:|",
        "| Maker A / x | hrm-tiny |  | 2,2 cycle | 5.0 |",
        "| Maker B | hrm-tiny | 4 |  | 2.3 |",
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"facts": {}, "measurements": []}', '{"facts": {"device": "a"}}']
)
def test_what_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: "):
        read(path)


def test_the_page_holds_what_the_reports_say() -> None:
    status = STATUS.read_text(encoding="utf-8")
    made = table([read(path) for path in sorted(REPORTS.glob("*.json"))])
    assert placed(status, made) == status, "run python -m benchmarks.device_table"


def test_marks_must_be_there() -> None:
    with pytest.raises(ValueError, match="has not both"):
        placed("nothing", device_table.table([]))

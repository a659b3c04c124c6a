"""The depth benchmark: quality at every depth, and the first cycle judged as a drafter."""

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.depth import Quality, main, table


def test_depths_differ_in_quality_and_all_is_written(tmp_path: Path) -> None:
    flags = [f"--work={tmp_path}", f"-o{tmp_path / 'out'}", "--size=none", "--limit=2"]
    result = CliRunner().invoke(main, [*flags, "--calls=4", "--threads=1"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["quality"]) == 9 and len(found["ms"]["hrm-tiny"]) == 2
    shallow, whole = (
        sum(task["exact"][n] for task in found["quality"].values()) / 9 for n in range(2)
    )
    assert whole >= 0.8 > 0.4 > shallow
    assert 0.1 < sum(task["drafts"] for task in found["quality"].values()) / 9 < 0.9
    assert (tmp_path / "out.md").read_text() in result.output + "\n"


def test_the_table_ends_with_the_mean() -> None:
    rows = table({"a": Quality((0.0, 1.0), 0.25), "b": Quality((0.5, 1.0), 0.75)}).splitlines()
    assert rows[0] == "| | exact, 1 of 2 | exact, 2 of 2 | first cycle drafts right |"
    assert rows[-1] == "| **mean** | 25.0 | 100.0 | 50.0 |"

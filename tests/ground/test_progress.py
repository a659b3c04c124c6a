"""Progress: bars that may be nested on a terminal, a line a minute elsewhere."""

import io

import pytest
from rich.console import Console

from hrm_edge import progress


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> io.StringIO:
    written = io.StringIO()
    console = Console(file=written, force_terminal=request.param, width=80)
    monkeypatch.setattr(progress, "console", console)
    return written


@pytest.mark.parametrize("stderr", [True], indirect=True)
def test_bars_can_be_nested(stderr: io.StringIO) -> None:
    found = [(a, b) for a in progress.track("ab", "outer") for b in progress.track("cd", "inner")]
    assert found == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    assert "outer" in stderr.getvalue() and "inner" in stderr.getvalue()


@pytest.mark.parametrize("stderr", [False], indirect=True)
def test_a_short_task_says_nothing_to_a_file(stderr: io.StringIO) -> None:
    assert list(progress.track([1, 2], "short")) == [1, 2]
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("stderr", [False], indirect=True)
def test_a_long_task_tells_a_file_how_far_it_is(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert list(progress.track(range(9), "long")) == list(range(9))
    lines = stderr.getvalue().splitlines()
    assert lines[0].startswith("long ") and lines[0].endswith(" of 9") and len(lines) > 1

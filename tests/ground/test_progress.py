"""Progress: bars that may be nested on a terminal, a line a minute elsewhere."""

import io
import re

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
    assert len(lines) > 1
    assert all(re.fullmatch(r"long \d of 9, \d+ (s|min) left", line) for line in lines), lines


@pytest.mark.parametrize("stderr", [False], indirect=True)
def test_steps_of_an_earlier_run_and_tokens_count(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.counting(10, "answer", 4) as done:
        for _ in range(3):
            now[0] += 100
            done(50)
    assert stderr.getvalue().splitlines() == [
        "answer 5 of 10, 0 tok/s, 8 min left",
        "answer 6 of 10, 0 tok/s, 7 min left",
        "answer 7 of 10, 0 tok/s, 5 min left",
    ]

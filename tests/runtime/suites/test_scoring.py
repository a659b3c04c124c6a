"""The rules by which an answer is right; DROP's against what lm-eval gives."""

import json
from pathlib import Path

import pytest

from hrm_edge.runtime.suites.report import interval, mcnemar
from hrm_edge.runtime.suites.scoring import boxed, drop, integer, letter, mathematical


def test_drop_is_scored_as_lm_eval_scores_it() -> None:
    """drop_scores.jsonl: answer, golds, and em and f1 by lm_eval 0.4.13's process_results."""
    cases = (Path(__file__).parent / "drop_scores.jsonl").read_text().splitlines()
    assert len(cases) > 40
    for case in map(json.loads, cases):
        text, golds, em, f1 = case
        assert drop(text, golds) == (em, f1), case


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        (r"So it is \boxed{1,234}.", 1234, 1),
        (r"\boxed{3} and then \boxed{$5}", 5, 1),
        (r"\boxed{3} and then \boxed{$5}", 3, 0),
        (" 72 ", 72, 1),
        ("It is 72", 72, 0),
        (r"\boxed{7.0}", 7, 0),
        (r"\boxed{-4}", -4, 1),
        (r"\boxed{4", 4, 0),
        ("", 0, 0),
    ],
)
def test_a_whole_number(text: str, gold: int, value: int) -> None:
    assert integer(text, gold) == value


def test_the_last_box_with_its_braces() -> None:
    assert boxed(r"a \boxed{1} b \boxed{\frac{1}{2}} c") == r"\frac{1}{2}"
    assert boxed("none") is None and boxed(r"\boxed{open") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"Thus \boxed{\frac{1}{2}}.", 1),
        (r"It is \boxed{0.5}", 1),
        (r"\boxed{\frac{2}{4}}", 1),
        (r"\boxed{2}", 0),
        ("no idea", 0),
    ],
)
def test_mathematics_is_compared_by_value(text: str, value: int) -> None:
    assert mathematical(text, r"We find $x = \boxed{\frac12}$.") == value


def test_letters() -> None:
    assert letter(" B\n", 1, 4) == 1 and letter("A", 1, 4) == 0
    for text in ("E", "b", "B.", "", "BB", "é"):
        assert letter(text, 1, 4) is None


def test_intervals_and_chances() -> None:
    """Wilson's for 8 of 10 as in Brown, Cai and DasGupta's tables; McNemar's by hand."""
    low, high = interval([1.0] * 8 + [0.0] * 2)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert interval([1.0] * 5)[1] == 1.0 and interval([0.0] * 5)[0] == 0.0
    low, high = interval([0.25, 0.75, 0.5])
    assert 0 < low < 0.5 < high < 1
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)

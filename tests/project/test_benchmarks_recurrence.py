"""The benchmarks of the recurrence run from end to end and count what they say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import decode, recurrence
from hrm_edge.bundle import Bundle
from hrm_edge.export import export
from hrm_edge.samples import Sample

pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[2] / "hrm_edge" / "data" / "hrm_tiny"


def test_every_plan_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = {"int4, KV 8": recurrence.RECIPES["int4, KV 8"]}
    monkeypatch.setattr(recurrence, "RECIPES", recipes)
    given = [TINY, TINY / "questions.jsonl", "-o", tmp_path / "out", "--limit", 6, "--depths"]
    monkeypatch.setattr(sys, "argv", ["recurrence", *map(str, given)])
    recurrence.main()
    text = (tmp_path / "out.md").read_text()
    assert text == capsys.readouterr().out
    assert text.startswith("6 questions, answers of ") and "Right by H cycles: 1: " in text
    assert "Shallow drafts: 6 of 6 answers as without drafts" in text
    raw = json.loads((tmp_path / "out.json").read_text())
    rows = raw["recipes"]["int4, KV 8"]
    assert len(rows) == 18 and rows[0]["same_answers"] == 1
    assert len(raw["alive"]["int4, KV 8"]) == 6
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_a_curve_counts_answers_that_are_still_the_same() -> None:
    told = [Sample((1,), (3, 4, 5), ""), Sample((1,), (3, 4), "")]
    eye = np.eye(9, dtype=np.float32)
    plans: Any = SimpleNamespace(told=told)
    found = recurrence.alive(plans, [eye[[3, 0, 5]], eye[[3, 4]]])
    assert found.tolist() == [1.0, 0.5, 0.0]


def test_decoding_is_timed_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle: Bundle = export(TINY, tmp_path / "bundle", gate=None)
    given = [bundle.path, "-o", tmp_path / "out", "--contexts", "4,40", "--rounds", 1]
    monkeypatch.setattr(sys, "argv", ["decode", *map(str, given), "--threads", "1"])
    decode.main()
    raw = json.loads((tmp_path / "out.json").read_text())
    assert set(raw["ms"]) == {"4", "40"} and len(raw["ms"]["4"]) == 9
    assert all(len(times) == decode.BLOCK - 1 for name, times in raw["ms"]["4"].items() if
               not name.startswith("reading"))  # fmt: skip
    assert len(raw["anonymous"]) == 2
    assert (tmp_path / "out.md").read_text().count("| plan ") == 6

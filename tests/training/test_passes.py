"""Which passes a step of training runs, what it shares, and what evaluations see of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.model import HRMText
from hrm_edge.prompt import SPECIAL_TOKENS
from hrm_edge.training import loop, train
from hrm_edge.training.evaluate import score
from hrm_edge.training.objective import Outcome
from hrm_edge.training.packing import Rows
from hrm_edge.training.schedule import kv_share
from hrm_edge.training.schedule import plan as plan_of
from hrm_edge.training.tokenizer import SMALLEST
from tiny_training import TINY, letters, metrics

pytestmark = pytest.mark.slow

Plan = tuple[bool, ...]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters(tmp_path_factory.mktemp("data") / "train.jsonl", 400, seed=0)


@pytest.fixture(scope="module")
def valid(data: Path) -> Path:
    return letters(data.parent / "valid.jsonl", 40, seed=1)


def test_steps_with_fewer_passes_are_drawn_by_their_number() -> None:
    config = TINY.architecture(SMALLEST, SPECIAL_TOKENS)
    often = replace(TINY.optimizer, fewer_passes=0.5)
    drawn = [plan_of(often, config, 0, step, 200) for step in range(1, 201)]
    assert drawn == [plan_of(often, config, 0, step, 200) for step in range(1, 201)]
    assert drawn != [plan_of(often, config, 1, step, 200) for step in range(1, 201)]
    assert 80 < sum(map(all, drawn)) < 170
    assert len(set(drawn)) == config.L_cycles**config.H_cycles
    assert all(all(plan_of(TINY.optimizer, config, 0, step, 50)) for step in range(1, 51))
    growing = replace(often, passes_warmup=0.25)
    assert [plan_of(growing, config, 0, step, 200) for step in range(1, 201)] == [
        *[config.plan([1], 1)] * 50,
        *drawn[50:],
    ]


def test_the_recurrence_grows_and_evaluations_with_it(
    data: Path, valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of the steps as warm-up; the last evaluation is that of the finished model."""
    seen: list[Plan] = []
    honest = loop.evaluate

    def watched(*given: Any, plan: Plan, **more: Any) -> Any:
        seen.append(plan)
        return honest(*given, plan=plan, **more)

    monkeypatch.setattr(loop, "evaluate", watched)
    growing = replace(TINY.optimizer, passes_warmup=0.5)
    config = replace(TINY, optimizer=growing, run=replace(TINY.run, eval_every=3))
    out = train(config, data, tmp_path / "run", valid=valid, quiet=True)
    shape = Checkpoint.open(out).config
    assert seen == [shape.plan([1], 1)] * 2 + [shape.plan()] * 2
    found = score(out, valid)
    (last,) = metrics(tmp_path / "run", "scores")[-1:]
    assert {k: v["loss"] for k, v in last.items()} == pytest.approx(
        {k: v.loss for k, v in found.items()}, rel=0.02
    )


def test_the_passes_of_a_step_are_those_that_were_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []
    honest = loop.outcome

    def watched(
        model: HRMText,
        rows: Rows,
        horizon: int | None,
        early: bool,
        teacher: None,
        plan: Plan,
        share: str,
        smoothing: float,
    ) -> Outcome:
        seen.append(plan)
        assert share == "none" and smoothing == 0
        found = honest(model, rows, horizon, early, teacher, plan)
        whole = honest(model, rows, horizon, early, teacher)
        same = torch.equal(found.losses, whole.losses)
        assert same == all(plan)
        return found

    monkeypatch.setattr(loop, "outcome", watched)
    often = replace(TINY.optimizer, fewer_passes=0.7)
    out = train(replace(TINY, optimizer=often), data, tmp_path / "run", quiet=True)
    config = Checkpoint.open(out).config
    assert seen == [plan_of(often, config, TINY.run.seed, step, 12) for step in range(1, 13)]
    assert len(set(seen)) > 3


def test_shared_slots_are_trained_in_their_share_of_the_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    honest = loop.outcome

    def watched(*given: Any) -> Outcome:
        *_, share, _ = given
        seen.append(share)
        return honest(*given)

    monkeypatch.setattr(loop, "outcome", watched)
    often = replace(TINY.optimizer, shared_slots=0.5)
    train(replace(TINY, optimizer=often), data, tmp_path / "run", quiet=True)
    assert seen == [kv_share(often, TINY.run.seed, step) for step in range(1, 13)]
    assert set(seen) == {"none", "cycle"}
    losses = metrics(tmp_path / "run", "loss")
    assert losses[-1] < 0.6 * losses[0]

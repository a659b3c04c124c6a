"""The gate for --fast: what each plan costs, which one it recommends, and who takes it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.export.evaluate import plans
from hrm_edge.export.evaluate.plans import Choice, Limits, Plans, choices, recommended
from hrm_edge.export.evaluate.report import Gate
from hrm_edge.numerics import log_softmax
from hrm_edge.runtime import load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session, settled
from references import random_samples
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=1, H=2, L=3, seed=3)
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plans") / "checkpoint", SHAPE)


@pytest.fixture(scope="module")
def loose(checkpoint: Path) -> Bundle:
    """Whatever a plan costs, the cheapest is recommended."""
    return export(checkpoint, checkpoint.with_name("loose"), gate=Gate(fast_kl=1e3, fast_top1=0))


def test_choices_begin_with_the_exact_one_and_get_cheaper(loose: Bundle) -> None:
    found = list(choices(loose.manifest.model, ("none", "cycle")))
    assert found[0] == Choice((3, 3), "none", 1.0, 1.0)
    assert found[1] == Choice((3, 3), "cycle", 1.0, 0.5)
    assert [c.l_cycles for c in found[::2]] == [(3, 3), (2, 3), (1, 3), (2, 2), (1, 2), (1, 1)]
    assert found[-1] == Choice((1, 1), "cycle", 0.5, 0.5)


def row(work: float, memory: float, kl: float, top1: float = 1.0) -> dict:
    return {"l_cycles": [work], "kv_share": memory, "work": work, "memory": memory} | {
        "kl_mean": kl,
        "top1": top1,
    }


def test_the_cheapest_within_the_limits_is_recommended() -> None:
    rows = [row(1, 1, 0), row(1, 0.5, 0.001), row(0.6, 1, 0.002), row(0.6, 0.5, 0.003)]
    rows += [row(0.5, 0.5, 0.004, 0.9), row(0.4, 0.5, 0.5)]
    assert recommended(rows, Limits(0.01, 0.99)) == {"l_cycles": [0.6], "kv_share": 0.5}
    assert recommended(rows, Limits(0.0025, 0.99)) == {"l_cycles": [0.6], "kv_share": 1}
    assert recommended(rows, Limits(0.01, 0.9)) == {"l_cycles": [0.5], "kv_share": 0.5}
    assert recommended(rows, Limits(0, 1)) == {"l_cycles": [1], "kv_share": 1}


@pytest.mark.parametrize("choice", [((1, 2), "none"), ((2, 3), "cycle"), ((3, 3), "cycle")])
def test_figures_are_those_of_the_runtime(loose: Bundle, choice: tuple) -> None:
    """By another way: a session decodes the exact bundle's answers with that plan."""
    plan, share = choice
    samples = random_samples(3)
    plans = Plans(loose, samples)
    exact = open_session(loose, Loading(threads=1))
    fewer = open_session(loose, Loading(threads=1, l_cycles=plan, kv_share=share))
    divergences, agreed = [], []
    for sample, told in zip(samples, plans.told, strict=True):
        answer, rows = [], [exact.start(sample.prompt)]
        while len(answer) < len(told.answer):
            answer.append(int(rows[-1].argmax()))
            rows.append(exact.decode(answer[-1:])[0])
        assert tuple(answer) == told.answer
        mine = [fewer.start(sample.prompt)] + [fewer.decode([t])[0] for t in answer[:-1]]
        p, q = log_softmax(np.stack(rows[:-1])), log_softmax(np.stack(mine))
        divergences.append((np.exp(p) * (p - q)).sum(-1))
        agreed.append(p.argmax(-1) == q.argmax(-1))
    found = plans.row(next(c for c in choices(loose.manifest.model, ("none", share))
                           if (c.l_cycles, c.kv_share) == choice))  # fmt: skip
    assert found["kl_mean"] == pytest.approx(np.concatenate(divergences).mean(), abs=2e-6) and (
        found["kl_mean"] > 0
    )
    assert found["top1"] == pytest.approx(np.concatenate(agreed).mean(), abs=1e-6)
    assert found["same_answers"] == pytest.approx(np.mean([a.all() for a in agreed]), abs=1e-6)


def test_long_answers_are_looked_at_but_not_for_ever(
    loose: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model seldom ends an answer: a few fill what is looked at."""
    monkeypatch.setattr(plans, "LONGEST", 256)
    monkeypatch.setattr(plans, "TOKENS", 300)
    fast = plans.measure_plans(loose, random_samples(20), Limits())
    assert fast["longest"] >= 100
    assert fast["answers"] < 20 and 300 <= fast["tokens"] < 300 + 256


def test_the_exact_plan_is_itself(loose: Bundle) -> None:
    first = loose.manifest.quality["fast"]["plans"][0]
    assert (first["kl_mean"], first["top1"], first["same_answers"]) == (0, 1, 1)


def test_fast_takes_what_is_recommended(loose: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    fast = loose.manifest.quality["fast"]
    assert fast["recommended"] == {"l_cycles": [1, 1], "kv_share": "cycle"}
    assert len(fast["plans"]) == 12 and fast["longest"] > 1
    chosen = settled(loose, Loading(fast=True))
    assert (chosen.l_cycles, chosen.kv_share) == ((1, 1), "cycle")
    assert settled(loose, Loading(fast=True, l_cycles=(2, 2))).l_cycles == (2, 2)
    named = load(loose, threads=1, l_cycles=(1, 1), kv_share="cycle")
    expected = named.generate("Hello", max_tokens=9).tokens
    assert load(loose, threads=1, fast=True).generate("Hello", max_tokens=9).tokens == expected
    strict = export(checkpoint, tmp_path / "strict", gate=Gate(fast_kl=0, fast_top1=1))
    assert strict.manifest.quality["fast"]["recommended"] == {
        "l_cycles": [3, 3],
        "kv_share": "none",
    }
    plain = load(strict, threads=1).generate("Hello", max_tokens=9).tokens
    assert load(strict, threads=1, fast=True).generate("Hello", max_tokens=9).tokens == plain


def test_a_cache_with_fitted_scales_is_not_shared(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "kv4", kv_bits=4, gate=Gate(fast_kl=1e3, fast_top1=0))
    fast = bundle.manifest.quality["fast"]
    assert {row["kv_share"] for row in fast["plans"]} == {"none"}
    assert load(bundle, threads=1, fast=True).generate("Hi", max_tokens=3).tokens


def test_states_turn_away_pass_by_pass(loose: Bundle) -> None:
    states = loose.manifest.quality["states"]
    assert len(states) == 8 and all(0.5 < cosine < 1 for cosine in states)


def test_from_the_command_line(
    run_cli: Cli, checkpoint: Path, loose: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    code, text, _ = run_cli("export", checkpoint, "-o", out, "--fast-kl", 1000, "--fast-top1", 0)
    assert code == 0 and "states, 1 - cosine by pass:" in text
    assert [line.split()[0] for line in text.splitlines() if "<- --fast" in line] == ["1,1"]
    named = run_cli("generate", out, "Hi", "-n", 5, "--l-cycles", "1,1", "--kv-share", "cycle")
    assert run_cli("generate", out, "Hi", "-n", 5, "--fast")[:2] == named[:2]
    code, text, _ = run_cli("bench", out, "-p", 4, "-n", 2, "-r", 1, "--fast", "-o", "json")
    assert code == 0 and '"l_cycles": "1,1"' in text and '"kv_share": "cycle"' in text
    exact, fewer = (
        json.loads(run_cli("eval", out, "--samples", 4, "--json", *flags)[1])["bundle"]
        for flags in ((), ("--l-cycles", "1,1"))
    )
    assert exact["perplexity"] != fewer["perplexity"]
    shared = run_cli("eval", out, "--samples", 4, "--json", "--kv-share", "cycle")
    assert json.loads(shared[1])["bundle"]["perplexity"] != exact["perplexity"]


def test_what_cannot_be_is_said_in_one_line(
    run_cli: Cli, checkpoint: Path, loose: Bundle, tmp_path: Path
) -> None:
    bare = replace(loose, manifest=replace(loose.manifest, quality={}))
    with pytest.raises(HRMEdgeError, match="no plan was measured at its export, so --fast has"):
        load(bare, fast=True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fast_kl": -1}, "fast_kl is -1, expected nats of 0 or more"),
        ({"fast_top1": 1.5}, "fast_top1 is 1.5, expected a share from 0 to 1"),
    ]
    for options, says in wrong:
        with pytest.raises(HRMEdgeError, match=says):
            Gate(**options)
    out = tmp_path / "no"
    code, _, err = run_cli("export", checkpoint, "-o", out, "-t", "gguf", "--fast-kl", 1)
    assert code == 2 and "for -t onnx, not gguf" in err and not out.exists()
    code, _, err = run_cli("export", checkpoint, "-o", out, "--no-report", "--fast-kl", 1)
    assert code == 2 and "need the report" in err
    code, _, err = run_cli("eval", loose.path, "--l-cycles", "4,4")
    assert code == 1 and "l_cycles is 4,4, expected 2 of 1 to 3" in err

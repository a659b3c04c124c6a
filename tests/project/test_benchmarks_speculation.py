"""The speculation benchmark: what it counts is so, and it runs from end to end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.make_checkpoint import config as sized
from benchmarks.speculation import (
    LLAMACPP,
    PLAIN,
    Counts,
    Ours,
    main,
    models,
    ratio,
    table,
    workloads,
)
from hrm_edge.prompt import Tokenizer

pytestmark = pytest.mark.slow

LARGE = replace(sized("tiny", vocab=640), num_attention_heads=4, head_dim=64)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speculation")


def test_every_way_decodes_the_same_tokens_in_as_many_calls_as_it_says(work: Path) -> None:
    small, large = models(work, LARGE, "small")
    assert large.draft == small.bundle
    ours = Ours.open(large, 1)
    for workload in workloads(Tokenizer(large.bundle), 20):
        expected = None
        for way in ours.ways(workload):
            counts, answer = ours.decode(way, workload, workload.texts[0])
            expected = expected or answer
            assert answer == expected
            assert counts.tokens == len(answer) - 1 == counts.calls + counts.accepted
            assert (counts.drafted > 0) <= (way != PLAIN)
        played = workload.texts[0].answer
        assert list(played[: len(expected or [])]) == expected or not played


def test_copied_text_takes_fewer_calls(work: Path) -> None:
    (small,) = models(work, None, "none")
    ours, kinds = Ours.open(small, 1), workloads(Tokenizer(small.bundle), 40)
    code = next(w for w in kinds if w.name.startswith("code"))
    ours.decode("prompt lookup", code, code.texts[0])  # learns what calls cost
    counts, _ = ours.decode("prompt lookup", code, code.texts[0])
    assert counts.calls < 0.7 * counts.tokens


def test_all_is_measured_in_turns_and_written(work: Path, tmp_path: Path) -> None:
    flags = ["--rounds=2", "--tokens=8", "--threads=1", "--size=none", f"-o{tmp_path / 'out'}"]
    result = CliRunner().invoke(main, [f"--work={work}", *flags], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "out.json").read_text())["models"]["hrm-tiny"]
    assert len(found) == 4
    for ways in found.values():
        assert {PLAIN, "prompt lookup", LLAMACPP} <= set(ways)
        assert all(len(rounds) == 2 for rounds in ways.values())
    text = (tmp_path / "out.md").read_text()
    assert text in result.output + "\n" and text.count(f"| {LLAMACPP} |") == 4


def test_ratios_are_medians_of_rounds() -> None:
    ways = {
        PLAIN: [Counts(10, 1.0, 10), Counts(10, 2.0, 10), Counts(10, 4.0, 10)],
        "prompt lookup": [Counts(10, 0.5, 5, 8, 5), Counts(10, 1.0, 5, 8, 5), Counts(10, 4.0, 5)],
        LLAMACPP: [Counts(5, 1.0, 5)] * 3,
    }
    assert ratio(ways, "prompt lookup", PLAIN) == 2.0
    row = next(x for x in table({"text": ways}).splitlines() if "lookup" in x)
    assert row == "| text | prompt lookup | 10 of 16 | 2.00 | 10.00 | 2.00 | 2.00 |"

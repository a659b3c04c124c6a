"""`hrm-edge demo` with the shipped model: exact where it says so, and quick."""

import re
from pathlib import Path

import pytest

from hrm_edge.bundle import Bundle

pytestmark = pytest.mark.slow


def test_the_demo_checks_the_bundle_and_answers(run_cli, tmp_path: Path) -> None:
    code, out, _ = run_cli("demo", "--seed", 1, "-q", 18, "-o", tmp_path / "bundle")
    assert code == 0
    agreement = re.search(r"top token equal at ([\d.]+)%, mean KL divergence ([\d.]+)", out)
    assert agreement and float(agreement[1]) >= 98 and float(agreement[2]) < 0.01
    right, exact, causal = map(int, re.findall(r"(\d+) of 18 right in ", out))
    assert right >= 15 and exact >= 15 and causal < 12
    assert out.count("(right)") == right
    assert out.endswith(f"Try: hrm-edge chat {tmp_path / 'bundle'}\n")
    assert Bundle.open(tmp_path / "bundle", verify=True).manifest.quantization.bits == 4
    answer = run_cli("generate", tmp_path / "bundle", "Spell this word backward: STONE")[1]
    assert answer == "ENOTS\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-q", "0"], "questions is 0"), (["-o", "."], "exists; choose another name")],
)
def test_a_mistake_is_one_line(run_cli, arguments: list[str], message: str) -> None:
    code, out, err = run_cli("demo", *arguments)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1

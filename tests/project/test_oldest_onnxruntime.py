"""The oldest ONNX Runtime that docs/bundle.md names for a bundle gives the golden vectors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hrm_edge.export import export

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kv_bits", [32, 8])
def test_the_oldest_release_answers_alike(tmp_path: Path, kv_bits: int) -> None:
    docs = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {kv_bits} \| (\d+\.\d+\.\d+) \|", docs, re.MULTILINE)
    assert found, "docs/bundle.md has lost its table of releases"
    site, wheel = tmp_path / "site", f"onnxruntime=={found[1]}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True)
    tiny = ROOT / "hrm_edge" / "data" / "hrm_tiny"
    bundle = export(tiny, tmp_path / "bundle", kv_bits=kv_bits, gate=None)
    script, golden = ROOT / "benchmarks/stock_onnxruntime.py", ROOT / "android_demo/golden.json"
    done = subprocess.run(
        [sys.executable, script, golden, str(kv_bits), bundle.path],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"onnxruntime {found[1]}: 50 of 50 answers the same\n"

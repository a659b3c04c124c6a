"""benchmarks/faults.py at some of the places; the whole table stands in docs/reliability.md."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("only", "every"),
    [
        ("export to a new name", 17),
        ("export --force", 15),
        ("gguf", 16),
        ("write a checkpoint", 7),
        ("weight cache", 40),
        ("--prompt-cache", 2),
        ("/save", 1),
        ("train", 160),
    ],
)
def test_a_failed_write_leaves_the_old_or_the_new(only: str, every: int) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--only", only, "--every", str(every)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    *_, last = done.stdout.strip().splitlines()
    assert "| killed | " in last, last

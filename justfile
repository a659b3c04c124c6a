# Commands of the workshop; `just` lists them. Needs `pip install rust-just` or your system's package.

default:
    @just --list

# Style, types and the tests that take less than a minute together.
quick:
    ruff check .
    ruff format --check .
    pyright
    pytest -q -m "not slow and not browser and not network"

# What CI runs: the README's test command in a fresh environment.
check:
    bash .ci/run

# An hour of damaged files for every reader.
fuzz:
    HRM_EDGE_FUZZ=240 pytest -q tests/project/test_fuzz_readers.py

# Every place at which writing can fail; more than an hour.
faults:
    python -m benchmarks.faults

# The rules of the house alone.
rules:
    pytest -q tests/test_architecture.py

# Mend what can be mended without thinking.
fix:
    ruff check --fix .
    ruff format .

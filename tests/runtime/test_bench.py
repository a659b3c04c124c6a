"""bench: llama-bench's flags and table, and figures that agree with each other."""

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime.bench import Test as Case
from hrm_edge.runtime.bench import plan
from hrm_edge.runtime.cli.bench import command
from hrm_edge.runtime.session import threads


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_the_table_is_llama_benchs(shared_bundle: Path) -> None:
    done = bench(shared_bundle, "-p", "16,32", "-n", 8, "-d", "0,20", "-r", 2, "-t", 1)
    assert done.exit_code == 0, done.output
    head, rule, *rows = done.stdout.splitlines()
    assert re.split(r"\s*\|\s*", head.strip("| ")) == (
        ["model", "size", "params", "backend", "threads", "test", "t/s"]
    )
    assert set(rule) <= set("|-: ") and len({len(line) for line in (head, rule, *rows)}) == 1
    cells = [re.split(r"\s*\|\s*", row.strip("| ")) for row in rows]
    assert [cell[5] for cell in cells] == ["pp16", "pp32", "tg8", "tg8 @ d20"]
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", cell[6]) for cell in cells)
    assert re.search(r"peak memory \d+ MiB, anonymous memory \d+ MiB", done.stderr)


def test_json_holds_every_sample_and_csv_a_line_each(shared_bundle: Path) -> None:
    options = (shared_bundle, "-p", 8, "-n", 4, "-r", 3, "-t", 1)
    found = json.loads(bench(*options, "-o", "json").stdout)
    assert [row["test"] for row in found] == ["pp8", "tg4"]
    for row in found:
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 3
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 3)
        tokens = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"][0] == pytest.approx(1e9 * tokens / row["samples_ns"][0])
        assert row["anonymous_memory"] > 0 and row["n_threads"] == 1
    lines = list(csv.DictReader(bench(*options, "-o", "csv").stdout.splitlines()))
    assert [line["test"] for line in lines] == ["pp8", "tg4"]


def test_rows_decode_their_tokens_at_once(shared_bundle: Path) -> None:
    options = ("-p", 0, "-n", 6, "-d", "0,9", "--parallel", "1,3", "-r", 2, "-t", 1)
    found = json.loads(bench(shared_bundle, *options, "-o", "json").stdout)
    assert [row["test"] for row in found] == ["tg6", "tg6 x3", "tg6 @ d9", "tg6 x3 @ d9"]
    for row in found:
        tokens = 6 * row["n_parallel"]
        assert row["samples_ts"][0] == pytest.approx(1e9 * tokens / row["samples_ns"][0])


def test_packed_weights_can_be_measured_too(shared_bundle: Path, tmp_path: Path) -> None:
    options = ("-p", 8, "-n", 0, "-r", 1, "-t", 1, "--weight-cache", tmp_path / "cache")
    done = bench(shared_bundle, *options)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "cache").rglob("*.onnx"))


def test_sustained_runs_for_its_time_and_plots(shared_bundle: Path, tmp_path: Path) -> None:
    png = tmp_path / "s.png"
    done = bench(shared_bundle, "-n", 4, "--sustained", 0.005, "-o", "json", "--plot", png)
    points = json.loads(done.stdout)
    assert points[-1][0] >= 0.3 and all(rate > 0 for _, rate in points)
    assert "t/s at first" in done.stderr
    assert png.read_bytes().startswith(b"\x89PNG")


def test_results_are_plotted(shared_bundle: Path, tmp_path: Path) -> None:
    png = tmp_path / "bench.png"
    assert bench(shared_bundle, "-p", 4, "-n", 4, "-r", 1, "--plot", png).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_prompt_has_no_depth() -> None:
    assert plan([16, 0], [8], [0, 4]) == [Case(n_prompt=16), Case(n_gen=8), Case(0, 8, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", 0, "-n", 0], "nothing to measure"),
        (["-p", 4000], "the tests need 4000 tokens of context, .* has 256"),
        (["-r", 0], "repetitions is 0"),
        (["--parallel", 0], "--parallel is 0, expected 1 or more"),
        (["-p", 8, "-n", 8, "--parallel", 65], r"rows \(--parallel\) is 65, expected 1 to 64"),
        (["-t", 0], "threads is 0"),
        (["--sustained", 0], "sustained is 0"),
        (["--sustained", 1, "-n", 0], "--sustained decodes"),
        (["--plot", "x.jpg"], r"plot is x.jpg, expected a .png"),
    ],
)
def test_what_cannot_be_measured_is_refused(shared_bundle: Path, arguments, message: str) -> None:
    error = bench(shared_bundle, *arguments).exception
    assert isinstance(error, HRMEdgeError) and re.search(message, str(error))


def test_numbers_that_are_none_are_wrong_usage(shared_bundle: Path) -> None:
    assert bench(shared_bundle, "-p", "many").exit_code == 2


def test_threads_are_physical_performance_cores_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cpu(number: int, siblings: str, capacity: int) -> None:
        path = tmp_path / f"cpu{number}"
        (path / "topology").mkdir(parents=True)
        (path / "topology" / "thread_siblings_list").write_text(siblings + "\n")
        (path / "cpu_capacity").write_text(f"{capacity}\n")

    for number in range(4):  # two fast cores with two threads each
        cpu(number, "0-1" if number < 2 else "2-3", 1024)
    for number in range(4, 8):  # four slow ones
        cpu(number, str(number), 400)
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "INTEL_PERFORMANCE", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert threads.default_threads() == 2
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads.default_threads() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    assert threads.default_threads() == 3

"""The driver of llama.cpp, and the tables that are made of what it and others report."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.engines import RUNTIMES
from benchmarks.llamacpp import FOLDER_VARIABLE, Llama, library_folder
from benchmarks.measure import energy_counters, joules, measure
from benchmarks.peers import limit, plot, ratios, table
from benchmarks.prefix import Outcome
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export.quantize.plan import make_plan
from hrm_edge.export.targets import GGUFTarget
from hrm_edge.export.to_gguf.write import write_gguf

pytestmark = pytest.mark.slow


@pytest.fixture
def gguf(checkpoint: Path, tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    write_gguf(make_plan(Checkpoint.open(checkpoint), GGUFTarget("f16")), tmp_path / "gguf", 128)
    return tmp_path / "gguf" / "model.gguf"


def test_rewind_forgets(gguf: Path) -> None:
    with Llama(gguf, 64, 1) as llama:
        llama.prefill([20, 21, 22], causal=True)
        first = llama.decode([23, 24])
        llama.rewind(3)
        assert llama.length == 3
        np.testing.assert_array_equal(llama.decode([23, 24]), first)


def test_measure_reports_each_series(gguf: Path) -> None:
    report = measure(lambda room: RUNTIMES["llama.cpp"](gguf, room, 1), [0, 20], decode=3).to_dict()
    assert [t["depth"] for t in report["decode"]] == [0, 20]
    assert [len(t["ms"]) for t in report["decode"]] == [3, 3]
    assert [t["tokens"] for t in report["prefill"]] == [20]
    assert 0 < report["after_load"]["anonymous"] <= report["after_run"]["peak"]


def test_energy_is_that_of_all_packages_and_counters_wrap(tmp_path: Path) -> None:
    assert energy_counters(tmp_path) == [] and joules([], []) is None
    for package, drawn in enumerate((5_000_000, 90)):
        folder = tmp_path / f"intel-rapl:{package}"
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{drawn}\n")
        (folder / "max_energy_range_uj").write_text("100\n" if package else "9000000\n")
    before = energy_counters(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("10\n")
    assert joules(before, energy_counters(tmp_path)) == pytest.approx(2.00002)


def test_a_file_that_llamacpp_refuses_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no GGUF at all")
    with pytest.raises(HRMEdgeError, match=r"model\.gguf: llama.cpp .* cannot load it") as caught:
        Llama(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_a_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/nowhere")
    with pytest.raises(HRMEdgeError, match="npm ci --ignore-scripts"):
        library_folder()


@pytest.mark.parametrize("runtime", ["hrm-edge", "llama.cpp", "onnxruntime-genai", "transformers"])
def test_runtimes_decode_after_rewinding(
    runtime: str, shared_checkpoint: Path, shared_bundle: Path, gguf: Path
) -> None:
    models = {"llama.cpp": gguf, "transformers": shared_checkpoint}
    session = RUNTIMES[runtime](models.get(runtime, shared_bundle), 64, 1)
    session.prefill([20, 21, 22])
    first = session.decode([23])
    session.decode([24])
    session.rewind(2)
    np.testing.assert_allclose(session.decode([23]), first, atol=1e-5)


def report(decode: float, prefill: float, depths: tuple[int, ...] = (0, 64)) -> dict:
    memory = {"anonymous": 10**6, "resident": 2 * 10**6, "peak": 3 * 10**6}
    return {
        "load_s": 1.0,
        "prefill": [{"depth": 8, "tokens": 8, "ms": [prefill], "joules": 16.0}],
        "decode": [{"depth": d, "tokens": 1, "ms": [decode * (1 + d / 64)] * 4} for d in depths],
        "after_load": memory,
        "after_run": memory,
    }


def test_ratios_are_against_llamacpp_as_it_comes_and_its_fastest_form(tmp_path: Path) -> None:
    reports = {
        "hrm-edge": [report(10, 100)] * 3,
        "llama.cpp": [report(20, 200)] * 3,
        "llama.cpp, flash attention off": [report(15, 300)] * 3,
        "transformers, float32": [report(99, 999, (0,))] * 3,
    }
    assert "| decode at context 0 | 2.00 | 1.50 (flash attention off) |" in ratios(reports)
    assert "| prefill of 8 | 2.00 | 2.00 (as it comes) |" in ratios(reports)
    lines = table(reports, dict.fromkeys(reports, 10**9)).splitlines()
    assert lines[2].startswith("| prefill of 8, ms | 100.0 (100.0 to 100.0) |")
    assert next(x for x in lines if "context 64, ms" in x).endswith("not measured |")
    assert "| prefill of 8, J a token | 2.0 (2.0 to 2.0) |" in "\n".join(lines)
    assert {line.count("|") for line in lines} == {6}
    assert "5 ms, 50 % of decode at context 0" in limit(reports["hrm-edge"], 10**8, 2e10)
    plot(reports, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_outcomes_count_exact_answers() -> None:
    questions = [{"response": "4", "task": "sum"}, {"response": "b", "task": "spell"}]
    outcome = Outcome("x", ("4 ", "c"))
    assert outcome.exact(questions) == 0.5 and outcome.exact(questions, "sum") == 1
    assert outcome.same(Outcome("y", ("4 ", "b"))) == 0.5

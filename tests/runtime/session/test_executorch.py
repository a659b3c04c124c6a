"""ExecuTorch bundles in our runtime, in ExecuTorch's own runner, and where something is amiss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.export.recipe import HQQ
from hrm_edge.prompt import format_prompt
from hrm_edge.runtime import Cancelled, load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from pte_running import ROWS, RUNNER, run_cli, run_python
from references import prompt
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hrm-tiny with the default quantization."""
    return export(SHIPPED, tmp_path_factory.mktemp("pte") / "tiny", "executorch", gate=None).path


def test_the_stock_runner_gives_our_answers(bundle: Path) -> None:
    model = load(bundle, max_context=256)
    ours = [model.generate(row["instruction"], max_tokens=40).text for row in ROWS]
    assert len(ours) == 10 and len(set(ours)) > 5
    prompts = [format_prompt(row["instruction"]) for row in ROWS]
    done = run_python(RUNNER, bundle, json.dumps(prompts))
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert [text.removesuffix("<|box_end|>") for text in theirs] == ours


def test_generate_prints_the_answer_and_nothing_else(bundle: Path) -> None:
    done = run_cli("generate", bundle, ROWS[0]["instruction"])
    expected = load(bundle, max_context=256).generate(ROWS[0]["instruction"]).text
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


def test_rewind_and_start_reuse_the_cache(bundle: Path) -> None:
    session = open_session(Bundle.open(bundle), Loading(threads=1, max_context=256))
    first = session.prefill(prompt(9, 0))
    expected = session.decode([20])[0]
    session.decode([30, 40])
    session.rewind(3)
    np.testing.assert_array_equal(session.decode([20])[0], expected)
    np.testing.assert_array_equal(session.start(prompt(9, 0)), first)
    assert session.length == 9


def test_an_answer_can_be_cancelled(bundle: Path) -> None:
    model = load(bundle, max_context=256)
    pieces = model.stream("Count.", max_tokens=200)
    next(pieces)
    model.cancel()
    with pytest.raises(Cancelled):
        list(pieces)
    model.cancel()  # of no effect on the next answer
    assert model.generate("Count.", max_tokens=2).tokens


def test_nothing_is_drafted_and_no_prefix_saved(bundle: Path, tmp_path: Path) -> None:
    model = load(bundle, max_context=256)
    assert model.generate("ab ab ab ab ab ab ab ab", max_tokens=20).stats.drafted == 0
    with pytest.raises(HRMEdgeError, match="does not give out its KV cache"):
        model.save_prefix(tmp_path / "prefix")


def test_options_without_kernels_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    odd = write_model(tmp_path / "odd", Shape(heads=1, head_dim=48))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"kv_bits": 8}, "kv_bits is 8; in an ExecuTorch bundle the KV cache has 32 bits"),
        (
            {"method": HQQ()},
            "XNNPACK's 4-bit linears have no zero points: use rtn or gptq",
        ),
        ({"dtype": "fp16"}, "dtype does not apply to -t executorch; it is of -t onnx"),
        ({"kv_h_bits": 8}, "kv_h_bits does not apply to -t executorch"),
        ({"recipe": Recipe(dtype="fp16", kv_bits=16)}, "an ExecuTorch bundle computes in fp32"),
        ({}, "has rows of 48; 4 bits in ExecuTorch need a multiple of 32"),
    ]
    for options, complaint in refused:
        with pytest.raises(HRMEdgeError, match=complaint):
            export(odd, tmp_path / "out", "executorch", **options)
        assert not (tmp_path / "out").exists()


def test_what_only_onnx_can_do_is_refused(bundle: Path) -> None:
    refused: list[dict[str, Any]] = [
        {"h_cycles": 1},
        {"provider": "cuda"},
        {"weight_cache": Path("cache")},
        {"draft": bundle},
    ]
    for options in refused:
        with pytest.raises(HRMEdgeError, match="leave out --"):
            open_session(Bundle.open(bundle), Loading(**options))


def copied(bundle: Path, target: Path) -> Path:
    target.mkdir()
    for file in bundle.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("at", "damage"),
    [(4, b"ET11"), (8, np.random.default_rng(0).bytes(4096))],  # the schema's version; the program
)
def test_a_program_that_cannot_be_loaded_is_named_with_its_maker(
    bundle: Path, tmp_path: Path, at: int, damage: bytes
) -> None:
    damaged = copied(bundle, tmp_path / "damaged")
    data = bytearray((damaged / "model.pte").read_bytes())
    data[at : at + len(damage)] = damage
    (damaged / "model.pte").write_bytes(data)
    manifest = (damaged / "manifest.json").read_text()
    (damaged / "manifest.json").write_text(
        manifest.replace('"executorch": "1.4.1"', '"executorch": "0.3.0"')
    )
    with pytest.raises(HRMEdgeError, match=r"ExecuTorch .* cannot load what 0\.3\.0 made .*again"):
        open_session(Bundle.open(damaged), Loading(threads=1, max_context=256))


def test_a_bare_pte_is_told_from_a_bundle(bundle: Path) -> None:
    with pytest.raises(HRMEdgeError, match="a file; give the bundle's directory"):
        load(bundle / "model.pte")


@pytest.mark.parametrize(
    ("before", "complaint"),
    [
        ("sys.modules['executorch'] = None", "pip install 'hrm-edge[executorch]'"),
        (
            "sys.modules['executorch.kernels.quantized'] = type(sys)('empty')",
            "embedding_4bit.out is missing, which import executorch.kernels.quantized should bring",
        ),
    ],
)
def test_what_is_missing_is_named(bundle: Path, before: str, complaint: str) -> None:
    done = run_cli("generate", bundle, "Hello", before=before)
    assert done.returncode == 1
    assert complaint in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr

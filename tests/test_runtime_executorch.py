"""ExecuTorch bundles in our runtime, in ExecuTorch's own runner, and where something is amiss."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from references import prompt

from benchmarks.hrm_tiny_release import SHIPPED, read_rows
from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.prompt import format_prompt
from hrm_edge.runtime import Cancelled, load
from hrm_edge.runtime.session import open_session
from tiny_models import Shape, write_model

ROWS = read_rows(SHIPPED / "questions.jsonl")[::180]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hrm-tiny with the default quantization."""
    return export(SHIPPED, tmp_path_factory.mktemp("pte") / "tiny", "executorch", gate=None).path


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def run_cli(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after the code `before`."""
    return run_python(
        f"import sys\n{before}\nfrom hrm_edge.__main__ import main\nmain()", *arguments
    )


RUNNER = """
import json, sys
import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
runner = TextLLMRunner(f"{sys.argv[1]}/model.pte", f"{sys.argv[1]}/tokenizer.json")
config, answers = GenerationConfig(echo=False, max_new_tokens=40, temperature=0.0), []
for prompt in json.loads(sys.argv[2]):
    pieces = []
    runner.reset()
    runner.generate(prompt, config, pieces.append, None)
    answers.append("".join(pieces))
print("\\n" + json.dumps(answers))
"""


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
    session = open_session(Bundle.open(bundle), 1, 256)
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
        ({"recipe": Recipe(kv_bits=32, rotate=True)}, "an ExecuTorch bundle is rounded plainly"),
        ({"dtype": "fp16"}, "dtype is 'fp16'; an ExecuTorch bundle computes in fp32"),
        ({}, "has rows of 48; 4 bits in ExecuTorch need a multiple of 32"),
    ]
    for options, complaint in refused:
        with pytest.raises(HRMEdgeError, match=complaint):
            export(odd, tmp_path / "out", "executorch", **options)
        assert not (tmp_path / "out").exists()


def test_what_only_onnx_can_do_is_refused(bundle: Path) -> None:
    refused: list[dict[str, Any]] = [{"h_cycles": 1}, {"provider": "cuda"}]
    for options in refused:
        with pytest.raises(HRMEdgeError, match="runs all its cycles, and on the CPU"):
            open_session(Bundle.open(bundle), 1, 256, **options)


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
        open_session(Bundle.open(damaged), 1, 256)


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

"""The gate: figures against transformers and by hand, refusal, and what a bad input says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HrmTextForCausalLM

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.bundle import Bundle
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.report import Gate, evaluate, measure, predict, reader
from hrm_edge.export.evaluate.run_onnx import Runner
from hrm_edge.export.evaluate.sources import SOURCES, Source
from hrm_edge.export.evaluate.states import StateErrors
from hrm_edge.export.reference.figures import Tally
from hrm_edge.export.reference.forward import Batch, Variant, forward
from hrm_edge.export.to_onnx.stored import StoredModel
from hrm_edge.samples import default_prompts
from references import random_samples
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tied", [False, True])
def test_the_numpy_model_equals_transformers(tmp_path: Path, tied: bool) -> None:
    path = write_model(tmp_path / "m", Shape(layers=2, L=3, tied=tied))
    checkpoint, samples = Checkpoint.open(path), random_samples(9)
    batch = Batch.of(samples)
    logits = predict(checkpoint.config, reader(checkpoint), batch, [Variant()])[0]
    model = HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    expected = []
    for s in samples:
        types = torch.tensor([[1] * len(s.prompt) + [0] * (len(s.answer) - 1)])
        with torch.no_grad():
            out = model(torch.tensor([s.inputs]), token_type_ids=types, use_cache=False)
        expected.append(out.logits[0, len(s.prompt) - 1 :].numpy())
    found = np.concatenate(expected)
    assert np.abs(logits - found).max() < 1e-5 * np.abs(found).max()


@pytest.mark.parametrize(("kv_bits", "kv_h_bits"), [(8, None), (4, None), (4, 8)])
def test_all_sources_together_are_the_bundle(
    tmp_path: Path, kv_bits: int, kv_h_bits: int | None
) -> None:
    """Emulating every rounding gives what ONNX Runtime computes."""
    path = write_model(tmp_path / "m", Shape(layers=2, intermediate=160))
    recipe = Recipe(group_size=32, kv_bits=kv_bits, kv_h_bits=kv_h_bits)
    bundle = export(path, tmp_path / "b", recipe=recipe, gate=None)
    checkpoint, samples = Checkpoint.open(path), random_samples(6)
    stored = StoredModel(bundle.path / "model.onnx", checkpoint.config)
    variants = [Variant(), Source(stored, *SOURCES)]
    batch = Batch.of(samples)
    original, emulated = predict(checkpoint.config, reader(checkpoint), batch, variants)
    runner = Runner(bundle.path / "model.onnx", 16)
    real = np.concatenate([runner.logits(sample) for sample in samples])
    assert np.abs(emulated - real).mean() < 0.15 * np.abs(original - real).mean()


def test_a_float_bundle_is_its_checkpoint(shared_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    bundle = export(shared_checkpoint, out, bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    quality = bundle.manifest.quality
    assert quality["bundle"]["kl_mean"] < 1e-9
    assert quality["bundle"]["top1"] == 1.0
    assert quality["sources"] == {}


def test_figures_by_hand() -> None:
    half = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.2, 0.2, 0.6]]))
    other = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
    tally = Tally()
    tally.add(other + 7, np.array([0, 1, 2]), [2, 1], half)
    figures = tally.figures()
    assert figures.top1 == pytest.approx(2 / 3)
    assert figures.kl_mean == pytest.approx(0.25 * np.log(2) / 3)
    assert figures.exact_match == 0.5
    assert figures.perplexity == pytest.approx((0.5 * 0.25 * 0.6) ** (-1 / 3))


def test_export_of_the_shipped_model_reports_every_source(tmp_path: Path) -> None:
    quality = export(SHIPPED, tmp_path / "b").manifest.quality
    assert set(quality["sources"]) == set(SOURCES)
    assert quality["bundle"]["top1"] > 0.95
    assert quality["sources"]["head"]["kl_mean"] < quality["sources"]["weights"]["kl_mean"]
    assert quality["bundle"]["kl_mean"] > quality["sources"]["kv_cache"]["kl_mean"] > 0
    assert Bundle.open(tmp_path / "b").manifest.quality == quality


@pytest.mark.parametrize("gate", [Gate(max_kl=1e-7), Gate(min_top1=1.0)])
def test_a_bundle_that_falls_short_is_not_left_behind(
    shared_checkpoint: Path, tmp_path: Path, gate: Gate
) -> None:
    with pytest.raises(HRMEdgeError, match=r"max_kl|min_top1"):
        export(shared_checkpoint, tmp_path / "b", kv_bits=4, gate=gate)
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_cannot_be_checked_refuses(shared_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(HRMEdgeError, match="cannot be checked"):
        export(shared_checkpoint, tmp_path / "b", "gguf", gate=Gate(max_kl=1.0))
    with pytest.raises(HRMEdgeError, match="cannot be checked: no line"):
        export(shared_checkpoint, tmp_path / "b", max_seq_len=2, gate=Gate(max_kl=1.0))


@pytest.mark.parametrize("change", [{"max_kl": -1.0}, {"min_top1": 98.0}, {"max_kl": float("nan")}])
def test_a_gate_without_sense(change: dict[str, float]) -> None:
    with pytest.raises(HRMEdgeError, match=r"is .*expected"):
        Gate(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no line with a response"),
        ('{"instruction": "a", "response": " "}\n', "no line with a response"),
        ("{]\n", "line 1: not valid JSON"),
        ('{"instruction": "a"}\n', "line 1: response is missing"),
    ],
)
def test_a_bad_data_file_is_one_line(
    run_cli: Callable[..., tuple[int, str, str]],
    shared_checkpoint: Path,
    shared_bundle: Path,
    tmp_path: Path,
    text: str,
    problem: str,
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(text)
    for arguments in (
        ("eval", shared_bundle, "--data", data),
        ("export", shared_checkpoint, "-o", tmp_path / "b", "--eval-data", data),
    ):
        code, _, error = run_cli(*arguments)
        assert code == 1
        assert problem in error
        assert error.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_eval_says_what_export_said(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = write_model(tmp_path / "m", Shape())
    data = tmp_path / "data.jsonl"
    rows = [{"instruction": f"count {i}", "response": "abc"} for i in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = export(path, tmp_path / "b", gate=Gate(data))
    code, out, _ = run_cli("eval", bundle.path, "--data", data, "--reference", path, "--json")
    assert code == 0
    again = json.loads(out)
    assert again["samples"] == 5
    for source, found in bundle.manifest.quality["sources"].items():
        assert again["sources"][source] == pytest.approx(found, rel=1e-3, abs=1e-5)
    alone = evaluate(bundle.path, Gate(data))["bundle"]
    assert alone["perplexity"] == pytest.approx(again["bundle"]["perplexity"])


def test_eval_refuses_another_architecture(shared_bundle: Path, checkpoint: Path) -> None:
    with pytest.raises(HRMEdgeError, match="not those"):
        evaluate(shared_bundle, Gate(), checkpoint)


def test_eval_without_a_reference_cannot_judge(shared_bundle: Path) -> None:
    with pytest.raises(HRMEdgeError, match="--reference"):
        evaluate(shared_bundle, Gate(max_kl=1.0))


def test_samples_do_not_see_each_other(shared_checkpoint: Path) -> None:
    checkpoint, samples = Checkpoint.open(shared_checkpoint), random_samples(8)
    config, read = checkpoint.config, reader(checkpoint)
    together = predict(config, read, Batch.of(samples), [Variant()])[0]
    alone = [predict(config, read, Batch.of([s]), [Variant()])[0] for s in samples]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-4)


def test_the_shipped_prompts_are_short_and_apart() -> None:
    test, calibration = (default_prompts(name) for name in ("test", "calibration"))
    assert len(test) > 30 and len(calibration) > 200
    assert not {line.instruction for line in test} & {line.instruction for line in calibration}
    held_out = (SHIPPED / "questions.jsonl").read_text()
    assert not any(json.dumps(line.instruction) in held_out for line in [*test, *calibration])


def test_measure_is_repeatable(shared_checkpoint: Path, shared_bundle: Path) -> None:
    checkpoint, bundle = Checkpoint.open(shared_checkpoint), Bundle.open(shared_bundle)
    found = [measure(checkpoint, bundle, random_samples(4)) for _ in "ab"]
    assert found[0] == found[1]


def test_errors_grow_over_the_passes(shared_checkpoint: Path, shared_bundle: Path) -> None:
    checkpoint = Checkpoint.open(shared_checkpoint)
    config, read = checkpoint.config, reader(checkpoint)
    stored = StoredModel(shared_bundle / "model.onnx", config)
    variants = [Variant(), Source(stored, "weights")]
    found = StateErrors(config, len(variants))
    forward(config, read, Batch.of(random_samples(5)), [Variant(), *variants], found)
    same, weights = found.errors
    assert (found.cosines[0] == pytest.approx(1)) and (found.cosines[1] < 1 - 1e-7).all()
    assert same.max() == 0
    assert weights.shape == (len(config.passes), config.layers_per_stack)
    assert weights[-1, -1] > weights[0, 0] > 0


def test_eval_draws_a_png(
    run_cli: Callable[..., tuple[int, str, str]],
    shared_checkpoint: Path,
    shared_bundle: Path,
    tmp_path: Path,
) -> None:
    given = ("eval", shared_bundle, "--reference", shared_checkpoint, "--samples", 3)
    code, _, _ = run_cli(*given, "--plot", tmp_path / "error.png")
    assert code == 0
    assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")
    code, _, said = run_cli(*given, "--plot", tmp_path / "no" / "error.png")
    assert code == 1 and "cannot be written" in said
    code, _, said = run_cli("eval", shared_bundle, "--plot", tmp_path / "error.png")
    assert code == 1 and "--reference" in said

"""HQQ, GPTQ, rotation, mixed precision and a fitted cache: that each does what it is for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.report import Gate, predict, reader
from hrm_edge.export.evaluate.run_onnx import Runner
from hrm_edge.export.quantize.calibrate import calibration_samples, stages
from hrm_edge.export.quantize.gptq import gptq
from hrm_edge.export.quantize.grid import Quantized, dequantize, pack, quantize, unpack
from hrm_edge.export.quantize.hessians import Moments, Original, moments, pass_weights
from hrm_edge.export.quantize.hqq import hqq
from hrm_edge.export.quantize.plan import make_plan
from hrm_edge.export.quantize.rotation import hadamard, rotate
from hrm_edge.export.quantize.sensitivity import pass_sensitivities
from hrm_edge.export.recipe import GPTQ, HQQ, RTN, Calibration, Format, named_method
from hrm_edge.export.reference.forward import Batch, Variant
from hrm_edge.export.targets import ExecutorchTarget, GGUFTarget, OnnxTarget
from hrm_edge.names import DOWN, linear
from references import random_samples
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

SMALL = Calibration(tokens=300)


def random(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def error(weight: np.ndarray, quantized: Quantized) -> np.ndarray:
    return dequantize(quantized, 4, weight.shape[1]) - weight


@pytest.mark.parametrize("size", [6, 7])
def test_codes_survive_packing(size: int) -> None:
    codes = np.arange(3 * size, dtype=np.uint8).reshape(3, size) % 16
    np.testing.assert_array_equal(unpack(pack(codes, 4), 4)[:, :size], codes)


def test_zero_points_help_where_weights_lie_on_one_side() -> None:
    weight = np.abs(random(20, 96))
    symmetric, shifted = (error(weight, quantize(weight, 4, 32, s)) for s in (True, False))
    assert np.mean(shifted**2) < 0.5 * np.mean(symmetric**2)


@pytest.mark.parametrize(
    "make", [lambda w: quantize(w, 4, 32, False), lambda w: hqq(w, 4, 32, HQQ())]
)
@pytest.mark.parametrize("columns", [96, 112])
def test_onnxruntime_reads_zero_points_as_we_do(
    make: Callable[[np.ndarray], Quantized], columns: int, tmp_path: Path
) -> None:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    weight = random(24, columns) + 0.3
    q = make(weight)
    assert q.zero_points is not None
    stored = {"codes": q.codes, "scales": q.scales.reshape(-1), "zeros": q.zero_points.reshape(-1)}
    node = helper.make_node(
        "MatMulNBits",
        ["x", *stored],
        ["y"],
        domain="com.microsoft",
        N=24,
        K=columns,
        bits=4,
        block_size=32,
        accuracy_level=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 24])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString())
    x = random(5, columns, 1)
    found = np.asarray(session.run(None, {"x": x})[0])
    np.testing.assert_allclose(found, x @ dequantize(q, 4, columns).T, rtol=1e-3, atol=1e-3)


def correlated(rows: int, columns: int) -> np.ndarray:
    """Inputs that lie near a subspace, as a network's do."""
    return random(rows, 16, 1) @ random(16, columns, 2) + 0.3 * random(rows, columns, 3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [96, 112, 200])
def test_gptq_halves_the_output_error(symmetric: bool, columns: int) -> None:
    weight, x = random(40, columns), correlated(500, columns)
    nearest = quantize(weight, 4, 32, symmetric)
    found = gptq(weight, x.T @ x, Format(4, 32), GPTQ(symmetric))
    outputs = [np.square(x @ error(weight, q).T).sum() for q in (nearest, found)]
    assert outputs[1] < 0.5 * outputs[0]


def test_gptq_without_correlations_rounds_to_nearest_codes_of_its_grid() -> None:
    weight = random(10, 64)
    found = gptq(weight, np.eye(64), Format(4, 32), GPTQ(damping=1e-9))
    nearest = quantize(weight, 4, 32)
    assert np.square(error(weight, found)).mean() < 1.02 * np.square(error(weight, nearest)).mean()


def test_gptq_takes_inputs_that_are_never_used() -> None:
    weight, x = random(10, 64), correlated(100, 64)
    x[:, 5] = 0
    assert np.isfinite(error(weight, gptq(weight, x.T @ x, Format(4, 32)))).all()


@pytest.mark.parametrize(("size", "tolerance"), [(64, 1e-9), (96, 1e-9), (1, 1e-9)])
def test_a_rotation_is_orthogonal(size: int, tolerance: float) -> None:
    turned = hadamard(size)
    assert np.abs(turned @ turned.T - np.eye(size)).max() < tolerance


@pytest.mark.parametrize("tied", [False, True])
def test_a_rotated_model_is_the_same_function(tmp_path: Path, tied: bool) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path / "m", Shape(heads=3, L=3, tied=tied)))
    batch = Batch.of(random_samples(5))
    original, turned = (
        predict(c.config, reader(c), batch, [Variant()])[0]
        for c in (checkpoint, rotate(checkpoint))
    )
    assert np.abs(original - turned).max() < 2e-5 * np.abs(original).max()
    assert (
        np.abs(
            rotate(checkpoint).float32("model.z_L_init") - checkpoint.float32("model.z_L_init")
        ).max()
        > 0.1
    )


def test_rotated_and_float_bundles_give_the_same_logits(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", Shape(L=3))
    plain = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    logits = []
    for recipe in (plain, replace(plain, rotate=True)):
        bundle = export(path, tmp_path / f"b{recipe.rotate}", recipe=recipe)
        assert bundle.manifest.quantization.rotated == recipe.rotate
        assert bundle.manifest.quality["bundle"]["kl_mean"] < 1e-8
        runner = Runner(bundle.path / "model.onnx", 16)
        logits.append(np.concatenate([runner.logits(s) for s in random_samples(4)]))
    assert np.abs(logits[0] - logits[1]).max() < 2e-5 * np.abs(logits[0]).max()


def test_hessians_are_sums_over_all_passes(shared_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(shared_checkpoint)
    config, read = checkpoint.config, reader(checkpoint)
    batch, watched = Batch.of(random_samples(6)), "model.L_module.layers.1.mlp.down_proj.weight"
    seen: list[np.ndarray] = []

    class Spy(Variant):
        def inputs(self, name: str, turn: int, x: np.ndarray) -> np.ndarray:
            if name == watched:
                seen.append(x)
            return x

    predict(config, read, batch, [Spy()])
    assert len(seen) == config.H_cycles * config.L_cycles
    none = lambda _: None  # noqa: E731
    for passes, used in {"equal": seen, "first": seen[:1], "last": seen[-1:]}.items():
        for original in (None, Original(keep=False), Original(keep=True)):
            found = Moments(none, frozenset({watched}), pass_weights(config, passes), original)
            moments(config, read, batch, found, original)
            expected = sum(x.T @ x for x in used) / len(seen[0])
            np.testing.assert_allclose(found.hessians[watched], expected, rtol=1e-3, atol=1e-4)
            if original is not None:
                np.testing.assert_allclose(found.cross[watched], expected, rtol=1e-3, atol=1e-4)


def test_late_passes_count_more() -> None:
    config = Checkpoint.open(SHIPPED).config
    assert pass_weights(config, "late").tolist() == [1, 1, 1, 1, 4, 4, 4, 4]
    assert pass_weights(config, "last").tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_sensitivity_weighs_passes_around_one() -> None:
    checkpoint = Checkpoint.open(SHIPPED)
    samples = calibration_samples(checkpoint, SMALL)
    found = pass_sensitivities(checkpoint.config, reader(checkpoint), samples)
    stacks = np.array(checkpoint.config.passes)
    for stack in "LH":
        assert found[stacks == stack].mean() == pytest.approx(1)
    assert found.min() > 0 and found.max() > 1.2


def test_stages_cover_every_linear_once() -> None:
    config = Checkpoint.open(SHIPPED).config
    everything = {n for n in config.tensor_shapes() if "_module" in n}
    for stage in ("linear", "layer", "stack", "model"):
        for order in ("LH", "HL"):
            names = [n for s in stages(config, GPTQ(stage=stage, order=order)) for n in s]
            assert len(names) == len(everything) and set(names) == everything
            assert f"{order[0]}_module" in names[0]


@pytest.fixture(scope="module")
def shipped_kl(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """Mean divergence of the shipped model, exported by a recipe, by source."""

    def measure(source: str, **recipe: object) -> float:
        out = tmp_path_factory.mktemp("b") / "b"
        # of 300 tokens gptq knows too little: what comes out depends on the BLAS's roundings
        chosen = Recipe(calibration=Calibration(tokens=1000), **recipe)  # type: ignore[arg-type]
        quality = export(SHIPPED, out, recipe=chosen, gate=Gate(tokens=300)).manifest.quality
        return quality["sources"][source]["kl_mean"]

    return measure


def test_gptq_and_wider_linears_beat_rounding(shipped_kl: Callable[..., float]) -> None:
    nearest = shipped_kl("weights")
    assert shipped_kl("weights", method=GPTQ(symmetric=False)) < 0.8 * nearest
    assert shipped_kl("weights", target_bits=5.0) < 0.8 * nearest


def test_target_bits_are_kept_to(tmp_path: Path) -> None:
    recipe = Recipe(target_bits=4.5, calibration=SMALL)
    quantization = export(SHIPPED, tmp_path / "b", recipe=recipe, gate=None).manifest.quantization
    assert quantization.mean_bits is not None
    assert 4.2 < quantization.mean_bits <= 4.5


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, work = Checkpoint.open(SHIPPED), tmp_path / "work"
    target = OnnxTarget(Recipe(method=GPTQ(stage="stack"), calibration=SMALL))
    whole = make_plan(checkpoint, target)
    calls: list[int] = []

    def interrupted(*arguments: object) -> Quantized:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return gptq(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("hrm_edge.export.quantize.calibrate.gptq", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_plan(checkpoint, target, work)
    again = make_plan(checkpoint, target, work)
    assert len(calls) == 12 + 16 - 11
    for name, codes in whole.codes.items():
        np.testing.assert_array_equal(codes.codes, again.codes[name].codes)


def test_draws_of_calibration_differ_and_repeat() -> None:
    checkpoint = Checkpoint.open(SHIPPED)
    draws = [calibration_samples(checkpoint, Calibration(tokens=200, seed=s)) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert sum(len(s.inputs) for s in draws[0]) <= 200


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method": GPTQ(), "bits": 32}, "no linear is quantized"),
        ({"target_bits": 4.5, "bits": 32}, "target_bits is 4.5, but bits is 32"),
    ],
)
def test_a_recipe_that_names_no_tensor(change: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(HRMEdgeError, match=problem):
        export(SHIPPED, tmp_path / "b", recipe=Recipe(**change))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--method", "awq"), "method is 'awq', expected one of rtn, rtn-asym, hqq, gptq"),
        (("--target-bits", "3"), "target_bits is 3.0, expected 4 to 8"),
        (("--group-size", "48"), "group_size is 48, expected one of 16, 32, 64, 128, 256"),
        (
            ("--method", "gptq", "--calibration", "missing.jsonl"),
            "missing.jsonl: no such data file",
        ),
        (("--method", "gptq", "--calibration", "EMPTY"), "no line with a response"),
        (("--method", "gptq", "--calibration-tokens", "0"), "calibration tokens is 0"),
    ],
)
def test_bad_input_is_one_line(
    run_cli: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    arguments: tuple[str, ...],
    problem: str,
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    given = [str(tmp_path / "empty.jsonl") if a == "EMPTY" else a for a in arguments]
    code, _, said = run_cli("export", SHIPPED, "-o", tmp_path / "b", *given)
    assert code == 1
    assert problem in said
    assert said.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_a_group_size_that_does_not_divide_is_said(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for group, lines in {"256": 1, "128": 0}.items():
        out = tmp_path / group
        code, said, _ = run_cli("export", SHIPPED, "-o", out, "--group-size", group, "--no-report")
        assert code == 0
        assert said.count("group size 256 does not divide rows of 128 and 384: they are") == lines


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = write_model(tmp_path / "m", Shape())
    tensors = load_file(path / "model.safetensors")
    name = "model.H_module.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    for method in (RTN(), GPTQ()):
        with pytest.raises(HRMEdgeError, match=f"{name} holds 1 NaN"):
            export(path, tmp_path / "b", recipe=Recipe(method=method, calibration=SMALL))
    assert not (tmp_path / "b").exists()


def test_methods_have_names() -> None:
    for name in ("rtn", "rtn-asym", "gptq", "gptq-asym"):
        assert Recipe(method=named_method(name)).method_name == name


def test_a_fitted_cache_beats_one_from_the_weights_and_a_finer_one_both(tmp_path: Path) -> None:
    questions, lines = tmp_path / "questions.jsonl", (SHIPPED / "questions.jsonl").read_text()
    questions.write_text("\n".join(lines.splitlines()[::60]) + "\n")
    exact = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=4)
    found, finer = [], replace(exact, kv_h_bits=8)
    for recipe in (replace(exact, calibrate_kv=False), exact, finer):
        gate = Gate(questions, tokens=1000)
        bundle = export(SHIPPED, tmp_path / f"{len(found)}", recipe=recipe, gate=gate)
        found.append(bundle.manifest.quality["bundle"]["kl_mean"])
    assert found[1] < 0.7 * found[0]
    assert found[2] < 0.6 * found[1]


def test_the_long_steps_of_gptq_show_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hrm_edge.progress.QUIET", 0.0)
    checkpoint = Checkpoint.open(write_model(tmp_path / "m", Shape(layers=2)))
    make_plan(checkpoint, OnnxTarget(Recipe(method=GPTQ(stage="stack"), calibration=SMALL)))
    lines = capsys.readouterr().err.splitlines()
    layers = len(checkpoint.config.passes) * 2
    steps = [line.partition(",")[0] for line in lines if line.endswith(" left")]
    assert steps.count(f"forward 1 of {layers}") == 2 and "gptq 7 of 8" in steps  # for each stack


def test_every_target_stores_the_same_plan(tmp_path: Path) -> None:
    """GPTQ's codes reach a .pte and a GGUF file in the numbers that their kernels have."""
    checkpoint = Checkpoint.open(SHIPPED)
    recipe = Recipe(group_size=32, kv_bits=32, method=GPTQ(), calibration=SMALL)
    name = linear("L", 1, DOWN)
    pte = make_plan(checkpoint, ExecutorchTarget(recipe))
    gguf = make_plan(checkpoint, GGUFTarget("q4_0", method=GPTQ(), calibration=SMALL))
    for plan, dtype in ((pte, ml_dtypes.bfloat16), (gguf, np.float16)):
        found = plan.tensor(name)
        assert isinstance(found, Quantized) and found is plan.codes[name]
        np.testing.assert_array_equal(found.scales, found.scales.astype(dtype).astype("f4"))
        rounded = quantize(checkpoint.float32(name), 4, 32, positive=plan is pte)
        assert (found.codes != rounded.codes).mean() > 0.1
    assert (pte.codes[name].scales > 0).all()
    for target in (ExecutorchTarget(recipe), GGUFTarget(method=GPTQ(), calibration=SMALL)):
        manifest = export(SHIPPED, tmp_path / target.name, target, gate=None).manifest
        assert manifest.quantization.method == "gptq"


@pytest.mark.parametrize("target", ["executorch", "gguf"])
def test_zero_points_are_refused_where_kernels_have_none(tmp_path: Path, target: str) -> None:
    with pytest.raises(HRMEdgeError, match="no zero points: use rtn or gptq"):
        export(SHIPPED, tmp_path / "b", target, method=GPTQ(symmetric=False))
    assert not (tmp_path / "b").exists()


def test_a_rotated_pte_answers_as_one_that_is_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {"bits": 32, "head_bits": 32, "embedding_bits": 32, "rotate": True}
    quality = export(SHIPPED, tmp_path / "b", "executorch", **options).manifest.quality
    assert quality["bundle"]["kl_mean"] < 1e-6

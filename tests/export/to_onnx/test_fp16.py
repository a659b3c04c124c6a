"""Graphs in float16: as close to float32 as its 11 bits allow, on ONNX Runtime's CPU kernels."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest

from hrm_edge.bundle import Bundle
from hrm_edge.checkpoint import Checkpoint, write_checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

EXACT32 = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
EXACT16 = Recipe(bits=16, head_bits=16, embedding_bits=16, kv_bits=16, dtype="fp16")
HRM_TINY = Path(str(files("hrm_edge") / "data" / "hrm_tiny"))


def logits(bundle: Bundle) -> np.ndarray:
    """Of a prefix of 40, twelve single tokens, and three at once; [V] each, stacked."""
    ids = np.random.default_rng(0).integers(20, 250, 55).tolist()
    session = open_session(bundle, Loading(threads=1))
    rows = [session.prefill(ids[:40])[None]]
    rows += [session.decode([token]) for token in ids[40:52]]
    return np.concatenate([*rows, session.decode(ids[52:])])


def divergence(expected: np.ndarray, got: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence of the softmax of `got` from that of `expected`."""
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (expected, got))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize("tied", [False, True])
def test_fp16_differs_from_fp32_by_its_rounding_alone(tmp_path: Path, tied: bool) -> None:
    path = write_model(tmp_path / "model", Shape(layers=2, H=2, L=3, tied=tied))
    expected = logits(export(path, tmp_path / "fp32", recipe=EXACT32))
    got = logits(export(path, tmp_path / "fp16", recipe=EXACT16))
    assert got.dtype == np.float32
    assert 0 < np.abs(expected - got).max() / np.abs(expected).max() < 1e-2


@pytest.mark.parametrize(
    ("fp32", "fp16", "most"),
    [
        (EXACT32, EXACT16, 1e-4),
        (Recipe(kv_bits=8), Recipe(kv_bits=8, dtype="fp16"), 0.01),  # roundings to 8 and 4 bits
        (Recipe(kv_bits=4), Recipe(kv_bits=4, dtype="fp16"), 0.03),  # now and then go another way
    ],
)
def test_a_trained_model_in_fp16_is_the_model(
    tmp_path: Path, fp32: Recipe, fp16: Recipe, most: float
) -> None:
    expected = logits(export(HRM_TINY, tmp_path / "fp32", recipe=fp32))
    got = logits(export(HRM_TINY, tmp_path / "fp16", recipe=fp16))
    alike = 0.8 if fp32.kv_bits == 4 else 0.9
    assert (expected.argmax(-1) == got.argmax(-1)).mean() > alike
    assert 0 < divergence(expected, got) < most


def test_nothing_but_logits_and_kv_scales_is_float32(
    shared_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = export(shared_checkpoint, tmp_path / "fp16", dtype="fp16")
    graph = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph
    floats = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT and i.dims}
    assert floats and all(name.endswith(("k_scale", "v_scale")) for name in floats)
    kinds = {output.name: output.type.tensor_type.elem_type for output in graph.output}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    assert bundle.manifest.quantization.dtype == "float16"
    plain, drafted = load(bundle.path, threads=1), load(bundle.path, threads=1, draft="shallow")
    answers = [model.generate("Hi there", max_tokens=12).tokens for model in (plain, drafted)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "dtype is 'bf16', expected one of fp32, fp16"),
        (
            {"dtype": "fp16", "kv_bits": 32},
            "kv_bits is 32, expected one of 4, 8, 16 with dtype fp16",
        ),
        ({"kv_bits": 16}, "kv_bits is 16, expected one of 4, 8, 32 with dtype fp32"),
        ({"kv_bits": 4, "kv_h_bits": 6}, "kv_h_bits is 6, expected one of 4, 8"),
        ({"kv_bits": 32, "kv_h_bits": 8}, "kv_h_bits is 8, but kv_bits is 32"),
    ],
)
def test_a_recipe_that_no_kernel_takes_is_refused(options: dict, message: str) -> None:
    with pytest.raises(HRMEdgeError, match=message):
        Recipe(**options)


def test_a_weight_beyond_fp16_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(checkpoint)
    tensors = {name: source.float32(name) for name in source.names()}
    tensors["lm_head.weight"][3, 4] = 7e4
    large = tmp_path / "large"
    write_checkpoint(large, source.config, tensors.items(), "float32", checkpoint)
    with pytest.raises(HRMEdgeError, match=r"lm_head\.weight: holds 70000, too large for float16"):
        export(large, tmp_path / "fp16", recipe=EXACT16)
    assert not (tmp_path / "fp16").exists()

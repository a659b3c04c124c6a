"""Codes and scales: what they stand for, how far off they are, and that ONNX Runtime agrees."""

from typing import Any

import numpy as np
import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe
from hrm_edge.export.quantize.grid import dequantize, quantize


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("columns", [64, 96, 256])
@pytest.mark.parametrize("group_size", [16, 64, 128])
@pytest.mark.parametrize(("bits", "error"), [(4, 0.12), (8, 0.009)])
def test_the_error_is_that_of_the_grid(
    columns: int, group_size: int, bits: int, error: float
) -> None:
    weight = weights(40, columns)
    quantized = quantize(weight, bits, group_size)
    off = dequantize(quantized, bits, columns) - weight
    assert np.sqrt(np.mean(off**2)) < error


def test_searched_scales_beat_the_largest_weight() -> None:
    weight = weights(64, 512)
    searched = dequantize(quantize(weight, 4, 128), 4, 512)
    groups = weight.reshape(64, -1, 128)
    scale = np.abs(groups).max(-1, keepdims=True) / 7
    plain = (np.clip(np.rint(groups / scale), -8, 7) * scale).reshape(64, 512)
    assert np.mean((searched - weight) ** 2) < 0.9 * np.mean((plain - weight) ** 2)


def test_what_lies_on_the_grid_is_exact() -> None:
    weight = np.arange(-8, 8, dtype=np.float32).reshape(1, 16) / 4
    np.testing.assert_allclose(dequantize(quantize(weight, 4, 16), 4, 16), weight, rtol=1e-6)


def test_zeros_stay_zeros() -> None:
    quantized = quantize(np.zeros((3, 40), np.float32), 4, 32)
    assert np.isfinite(quantized.scales).all()
    assert not dequantize(quantized, 4, 40).any()


def test_rows_do_not_depend_on_how_they_are_cut_into_chunks() -> None:
    weight = weights(5000, 128)
    whole = quantize(weight, 4, 32)
    part = quantize(weight[4990:], 4, 32)
    np.testing.assert_array_equal(whole.codes[4990:], part.codes)
    np.testing.assert_array_equal(whole.scales[4990:], part.scales)


@pytest.mark.parametrize("field", ["bits", "group_size", "head_bits", "embedding_bits", "kv_bits"])
def test_a_recipe_names_the_value_and_the_supported_ones(field: str) -> None:
    wrong: dict[str, Any] = {field: 5}
    with pytest.raises(HRMEdgeError, match=f"{field} is 5, expected one of"):
        Recipe(**wrong)

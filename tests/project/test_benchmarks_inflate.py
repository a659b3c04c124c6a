"""A small model in a large shape says what the small one says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HrmTextForCausalLM

from benchmarks.inflate import inflate
from benchmarks.make_checkpoint import config as sized
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import load
from tiny_models import VOCAB, Shape, write_model

pytestmark = pytest.mark.slow

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
LARGE = sized("tiny", vocab=400)  # 2 heads of 128, 2 layers a stack


def logits(checkpoint: Path, ids: list[int], prefix: int) -> np.ndarray:
    """transformers' logits [len(ids), V] with the first `prefix` ids unmasked."""
    model = HrmTextForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    kinds = torch.tensor([[1] * prefix + [0] * (len(ids) - prefix)])
    with torch.no_grad():
        return model(torch.tensor([ids]), token_type_ids=kinds, use_cache=False).logits[0].numpy()


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(layers=2, heads=1, head_dim=128, H=1, L=3, seed=1),
        Shape(heads=2, head_dim=48, intermediate=160, tied=True, seed=2),
        Shape(heads=2, head_dim=64, H=3, L=1, layout="split", seed=3),
    ],
)
def test_logits_are_the_small_models(tmp_path: Path, shape: Shape) -> None:
    small = write_model(tmp_path / "small", shape)
    large = inflate(Checkpoint.open(small), tmp_path / "large", LARGE)
    ids = np.random.default_rng(0).integers(14, VOCAB, 150).tolist()
    expected, found = logits(small, ids, 100), logits(large, ids, 100)
    assert np.abs(found[:, :VOCAB] - expected).max() <= 1e-4 * np.abs(expected).max()
    padding = expected[:, 5:6].repeat(400 - VOCAB, axis=1)  # the padding token's, again and again
    np.testing.assert_allclose(found[:, VOCAB:], padding, atol=1e-4 * np.abs(expected).max())


def test_quantized_caches_cost_no_more_than_in_the_small_model(tmp_path: Path) -> None:
    small = write_model(tmp_path / "small", Shape(layers=2, heads=1, seed=6))
    large = inflate(Checkpoint.open(small), tmp_path / "large", LARGE)
    ids = np.random.default_rng(0).integers(14, VOCAB, 100).tolist()
    error = {}
    for path in (small, large):
        exact, coarse = (
            load(export(path, path / f"kv{r.kv_bits}", recipe=r).path, threads=1).session
            for r in (FLOAT, replace(FLOAT, kv_bits=4))
        )
        for session in (exact, coarse):
            session.prefill(ids)
        difference = (exact.decode(ids) - coarse.decode(ids))[:, :VOCAB]
        error[path] = float(np.square(difference).mean())
    assert error[large] <= 2 * error[small]


def test_the_shape_is_the_large_one(tmp_path: Path) -> None:
    small = Checkpoint.open(write_model(tmp_path / "small", Shape(H=3, L=1)))
    config = HRMTextConfig.from_file(inflate(small, tmp_path / "large", LARGE) / "config.json")
    assert (config.hidden_size, config.layers_per_stack, config.head_dim) == (256, 2, 128)
    assert (config.H_cycles, config.L_cycles) == (3, 1)
    assert config.parameters["L"] == LARGE.parameters["L"]


def test_a_shape_that_is_too_small_is_named(tmp_path: Path) -> None:
    small = Checkpoint.open(write_model(tmp_path / "small", Shape(layers=3)))
    with pytest.raises(HRMEdgeError, match="layers_per_stack is 2, expected at least 3"):
        inflate(small, tmp_path / "large", LARGE)
    assert not (tmp_path / "large").exists()

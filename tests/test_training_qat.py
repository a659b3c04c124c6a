"""Training on the export's grid: what is trained with is what is exported."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import TINY, letters, metrics
from torch import nn

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.export.quantize import dequantize, quantize
from hrm_edge.export.stored import StoredModel
from hrm_edge.training import train
from hrm_edge.training.config import LoraSettings, QATSettings, check_config
from hrm_edge.training.qat import QATLinear, fake_quantize


@pytest.mark.parametrize("columns", [32, 96, 200])
@pytest.mark.parametrize("group_size", [16, 32, 128])
def test_the_grid_is_the_exports(columns: int, group_size: int) -> None:
    weight = np.random.default_rng(columns).standard_normal((24, columns), np.float32)
    weight[3] = 0
    ours = fake_quantize(torch.from_numpy(weight), group_size).numpy()
    theirs = dequantize(quantize(weight, 4, group_size), 4, columns)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_go_straight_through() -> None:
    layer = QATLinear(32, 8, bias=False)
    layer.group_size = 16
    x = torch.randn(5, 32)
    (layer(x) * torch.arange(8.0)).sum().backward()
    plain = nn.Linear(32, 8, bias=False)
    (plain(x) * torch.arange(8.0)).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    assert not torch.equal(layer(x), nn.functional.linear(x, layer.weight))


def test_a_trained_checkpoint_exports_to_what_it_was_trained_with(tmp_path: Path) -> None:
    data = letters(tmp_path / "train.jsonl", 200, seed=0)
    path = train(TINY, data, tmp_path / "run", quiet=True, qat=16)
    losses = metrics(tmp_path / "run", "loss")
    assert losses[-1] < 0.8 * losses[0]
    bundle = export(path, tmp_path / "b", group_size=16, gate=None)
    checkpoint = Checkpoint.open(path)
    stored = StoredModel(bundle.path / "model.onnx", checkpoint.config)
    for name in checkpoint.names():
        if "_module" in name:
            weight = torch.from_numpy(checkpoint.float32(name))
            expected = fake_quantize(weight, 16).numpy()
            found = stored.float32(name)
            assert found is not None
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_go_together_is_refused() -> None:
    qat = QATSettings(bits=4)
    with pytest.raises(HRMEdgeError, match="save_dtype"):
        check_config(replace(TINY, qat=qat), "config")
    run = replace(TINY.run, save_dtype="float32")
    with pytest.raises(HRMEdgeError, match=r"lora\.rank"):
        check_config(replace(TINY, run=run, qat=qat, lora=LoraSettings(rank=4)), "config")


def test_only_four_bits(tmp_path: Path) -> None:
    data = letters(tmp_path / "train.jsonl", 20, seed=0)
    run = replace(TINY.run, save_dtype="float32")
    with pytest.raises(HRMEdgeError, match=r"qat\.bits is 3, expected 4"):
        train(replace(TINY, run=run, qat=QATSettings(bits=3)), data, tmp_path / "run", quiet=True)

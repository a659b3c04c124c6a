"""Training on the export's grid: what is trained with is what is exported."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.report import Gate, evaluate
from hrm_edge.export.quantize.grid import dequantize, quantize
from hrm_edge.export.to_onnx.stored import StoredModel
from hrm_edge.training import train
from hrm_edge.training.config import LoraSettings, QATSettings, check_config
from hrm_edge.training.qat import QATLinear, fake_quantize
from tiny_training import TINY, letters, metrics, write_lines

pytestmark = pytest.mark.slow


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
    config = replace(TINY, qat=QATSettings(distill=False))
    path = train(config, data, tmp_path / "run", quiet=True, qat=16)
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
    qat = QATSettings(bits=3, distill=False)
    with pytest.raises(HRMEdgeError, match=r"qat\.bits is 3, expected 4"):
        train(replace(TINY, run=run, qat=qat), data, tmp_path / "run", quiet=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learned its letters."""
    path = tmp_path_factory.mktemp("original")
    return train(TINY, letters(path / "train.jsonl", 200, seed=0), path / "run", quiet=True)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The letters' questions, all with the same answer."""
    path = tmp_path_factory.mktemp("wrong") / "train.jsonl"
    lines = [json.loads(line) for line in letters(path, 200, seed=1).read_text().splitlines()]
    return write_lines(path, [line | {"response": "z"} for line in lines])


def divergence(checkpoint: Path, reference: Path, data: Path, out: Path) -> float:
    """Mean KL of `checkpoint` in 4 bits against `reference`."""
    recipe = Recipe(4, 16, 32, 32, 32)
    bundle = export(checkpoint, out, recipe=recipe, gate=None)
    return evaluate(bundle.path, Gate(data), reference)["bundle"]["kl_mean"]


def test_it_learns_from_the_checkpoint_and_not_from_the_answers(
    original: Path, wrong: Path, tmp_path: Path
) -> None:
    config = replace(TINY, optimizer=replace(TINY.optimizer, lr=2e-3))
    found = {"rounded": divergence(original, original, wrong, tmp_path / "rounded")}
    for distill in (True, False):
        settings = replace(config, qat=QATSettings(distill=distill))
        out = tmp_path / str(distill)
        path = train(settings, wrong, out, start=original, quiet=True, qat=16)
        found[str(distill)] = divergence(path, original, wrong, out / "bundle")
    assert found["True"] < 0.8 * found["rounded"] < found["False"]


def test_without_a_checkpoint_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    data = letters(tmp_path / "train.jsonl", 20, seed=0)
    with pytest.raises(HRMEdgeError, match=r"--init CHECKPOINT .* or qat\.distill: false"):
        train(TINY, data, tmp_path / "run", quiet=True, qat=16)
    assert not (tmp_path / "run").exists()


def test_two_processes_have_the_losses_of_one(original: Path, wrong: Path, tmp_path: Path) -> None:
    """The teacher is sharded as the model is."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(TINY)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    train_qat = ["-m", "hrm_edge", "train", str(tmp_path / "config.yaml"), "--data", str(wrong)]
    train_qat += ["--init", str(original), "--qat", "--qat-group-size", "16", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*torchrun, *train_qat, "--out", str(tmp_path / "two")], check=True, env=environment
    )
    train(TINY, wrong, tmp_path / "one", start=original, quiet=True, qat=16)
    losses = metrics(tmp_path / "one", "loss")
    assert metrics(tmp_path / "two", "loss") == pytest.approx(losses, rel=1e-4)

"""Checkpoints are read in every layout, refused by name where they are amiss, written whole."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import HrmTextForCausalLM

from hrm_edge.checkpoint import Checkpoint, write_checkpoint
from hrm_edge.errors import HRMEdgeError
from tiny_models import Shape, random_model, write_model

Q = "model.L_module.layers.0.attn.gqkv_proj.weight"


def edit(path: Path, change) -> None:
    """Rewrite model.safetensors with its tensors passed through `change` (a dict in place)."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("layout", ["hub", "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layouts_and_dtypes_give_the_same_tensors(
    tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    shape = Shape(layout=layout, dtype=dtype)
    checkpoint = Checkpoint.open(write_model(tmp_path / "m", shape))
    state = random_model(shape).state_dict()
    block = "model.L_module.layers.0.self_attn."
    parts = [state[f"{block}{part}_proj.weight"] for part in ("gate", "q", "k", "v")]
    expected = torch.cat(parts).to(dtype).float().numpy()
    np.testing.assert_array_equal(checkpoint.float32(Q), expected)
    np.testing.assert_array_equal(checkpoint.float32(Q, slice(3, 9)), expected[3:9])
    assert set(checkpoint.names()) == set(checkpoint.config.tensor_shapes())


def test_shards_are_written_and_read_by_us_and_by_transformers(
    shared_checkpoint: Path, tmp_path: Path
) -> None:
    source = Checkpoint.open(shared_checkpoint)
    tensors = ((name, source.float32(name)) for name in source.names())
    out = write_checkpoint(
        tmp_path / "out", source.config, tensors, "float32", shared_checkpoint, shard_bytes=100_000
    )
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert (out / "tokenizer.json").is_file()
    copy = Checkpoint.open(out)
    for name in source.names():
        np.testing.assert_array_equal(copy.float32(name), source.float32(name))
    theirs = HrmTextForCausalLM.from_pretrained(out, dtype=torch.float32)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach(), source.float32("lm_head.weight"))


def test_bf16_is_stored_as_bf16(shared_checkpoint: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(shared_checkpoint)
    tensors = ((name, source.float32(name)) for name in source.names())
    out = Checkpoint.open(write_checkpoint(tmp_path / "out", source.config, tensors))
    assert out.tensor(Q).dtype == ml_dtypes.bfloat16


def test_missing_tensors_are_listed_by_name(checkpoint: Path) -> None:
    edit(checkpoint, lambda t: (t.pop("model.z_L_init"), t.pop(Q)))
    with pytest.raises(HRMEdgeError) as error:
        Checkpoint.open(checkpoint)
    assert "missing" in str(error.value)
    assert "model.z_L_init" in str(error.value)
    assert Q in str(error.value)


def test_unexpected_tensors_are_listed_by_name(checkpoint: Path) -> None:
    edit(checkpoint, lambda t: t.update({"model.extra": np.zeros(3, np.float32)}))
    with pytest.raises(HRMEdgeError, match=r"unexpected model\.extra"):
        Checkpoint.open(checkpoint)


def test_misshapen_tensors_are_listed_with_both_shapes(checkpoint: Path) -> None:
    edit(checkpoint, lambda t: t.update({Q: np.zeros((8, 64), np.float32)}))
    with pytest.raises(HRMEdgeError, match=r"gqkv_proj.weight is \(8, 64\), expected \(256, 64\)"):
        Checkpoint.open(checkpoint)


def test_nan_weights_are_refused_when_read(checkpoint: Path) -> None:
    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q] = tensors[Q].copy()
        tensors[Q][5, 5] = np.nan

    edit(checkpoint, poison)
    with pytest.raises(HRMEdgeError, match="holds 1 NaN or infinite values"):
        Checkpoint.open(checkpoint).float32(Q)


def test_integer_tensors_are_refused(checkpoint: Path) -> None:
    edit(checkpoint, lambda t: t.update({Q: np.zeros((256, 64), np.int32)}))
    with pytest.raises(HRMEdgeError, match="is I32, expected F32, F16, BF16"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("keep", [0.5, 0.0001])
def test_a_truncated_file_is_called_damaged(checkpoint: Path, keep: float) -> None:
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(HRMEdgeError, match="damaged or truncated"):
        Checkpoint.open(checkpoint)


def test_a_shard_that_the_index_lists_must_be_there(checkpoint: Path) -> None:
    index = {"weight_map": {Q: "model-00001-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(HRMEdgeError, match=r"missing model-00001-of-00002\.safetensors"):
        Checkpoint.open(checkpoint)


def test_writing_tensors_that_do_not_fit_leaves_nothing(tmp_path: Path) -> None:
    source = Checkpoint.open(write_model(tmp_path / "m", Shape()))
    with pytest.raises(HRMEdgeError, match="missing"):
        write_checkpoint(tmp_path / "out", source.config, [(Q, source.float32(Q))])
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


def test_no_directory_no_config_no_weights(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(HRMEdgeError, match="no such checkpoint directory"):
        Checkpoint.open(tmp_path / "none")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(HRMEdgeError, match=r"no model\.safetensors"):
        Checkpoint.open(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(HRMEdgeError, match="not valid JSON"):
        Checkpoint.open(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(HRMEdgeError, match="no such file"):
        Checkpoint.open(checkpoint)


def test_eos_ids_are_those_of_the_generation_config(checkpoint: Path) -> None:
    path = checkpoint / "generation_config.json"
    for ids, expected in ((None, (11,)), (7, (7,)), ([7, 11], (7, 11))):
        path.write_text(json.dumps({"eos_token_id": ids}))
        assert Checkpoint.open(checkpoint).eos_token_ids() == expected
    path.write_text(json.dumps({"eos_token_id": 100_000}))
    with pytest.raises(HRMEdgeError, match="eos_token_id is 100000, expected ids below 288"):
        Checkpoint.open(checkpoint).eos_token_ids()
    path.unlink()
    assert Checkpoint.open(checkpoint).eos_token_ids() == (11,)

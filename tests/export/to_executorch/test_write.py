"""ExecuTorch bundles against transformers, an emulation in torch, and ExecuTorch's own runner."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.hrm_tiny_release import SHIPPED, read_rows
from hrm_edge import memory
from hrm_edge.bundle import Bundle
from hrm_edge.export import Recipe, export
from hrm_edge.export.quantize.grid import Quantized, dequantize, quantize
from hrm_edge.export.targets import row_group
from hrm_edge.model import HRMText, KVCache
from hrm_edge.prompt import Tokenizer, format_prompt
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from hrm_edge.runtime.session.protocol import Session
from references import load_ours, load_reference, prompt, random_shapes, relative
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
STEPS = 16
SHAPES = random_shapes(10, (32, 64, 16, 6), (96, 160, 250))
LENGTHS = [
    (1, 100),
    (100, 1),
    *((n, 101 - n) for n in random.Random(7).choices(range(2, 100), k=8)),
]


@pytest.mark.parametrize(("shape", "lengths"), list(zip(SHAPES, LENGTHS, strict=True)))
def test_fp32_equals_transformers(tmp_path: Path, shape: Shape, lengths: tuple[int, int]) -> None:
    path = write_model(tmp_path / "model", shape)
    reference = load_reference(path)
    session = make_session(path, tmp_path / "pte", FLOAT)
    for number, length in enumerate(lengths):
        sequence = prompt(length, shape.seed + number)
        logits = session.prefill(sequence)
        for _ in range(STEPS):
            expected = reference.logits(sequence, length)[0]
            assert relative(expected, logits) < 1e-5
            token = int(expected.argmax())
            assert token == logits.argmax()
            sequence.append(token)
            logits = session.decode([token])[0]
        chunk = prompt(3, shape.seed + 2)
        expected = reference.logits(sequence + chunk, length, last=3)
        assert relative(expected, session.decode(chunk)) < 1e-5


def test_a_causal_model_is_exported_as_causal(checkpoint: Path, tmp_path: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"prefix_lm": true', '"prefix_lm": false'))
    reference = load_reference(checkpoint)
    session = make_session(checkpoint, tmp_path / "pte", FLOAT)
    ids = prompt(20, 0)
    assert relative(reference.logits(ids, 0)[0], session.prefill(ids)) < 1e-5
    assert relative(reference.logits([*ids, 30, 40], 0, last=2), session.decode([30, 40])) < 1e-5


def test_a_float_program_is_its_checkpoint(shared_checkpoint: Path, tmp_path: Path) -> None:
    quality = export(
        shared_checkpoint, tmp_path / "pte", "executorch", recipe=FLOAT
    ).manifest.quality
    assert quality["bundle"]["kl_mean"] < 1e-9 and quality["bundle"]["top1"] == 1.0
    assert quality["sources"] == {}


def test_the_gate_holds_for_a_program(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join((SHIPPED / "questions.jsonl").read_text().splitlines(True)[:8]))
    given = ("export", SHIPPED, "-t", "executorch", "--eval-data", data)
    code, _, error = run_cli(*given, "-o", tmp_path / "refused", "--max-kl", 1e-7)
    assert code == 1 and "mean KL divergence is" in error
    assert not (tmp_path / "refused").exists()
    code, out, _ = run_cli(*given, "-o", tmp_path / "pte", "--min-top1", 0.9)
    assert code == 0 and "8 samples" in out
    quality = Bundle.open(tmp_path / "pte").manifest.quality
    evaluated = ("eval", tmp_path / "pte", "--data", data)
    code, out, _ = run_cli(*evaluated, "--reference", SHIPPED, "--json")
    assert code == 0 and json.loads(out) == quality
    code, out, _ = run_cli(*evaluated, "--json")
    assert json.loads(out)["bundle"].items() <= quality["bundle"].items()
    code, _, error = run_cli(*evaluated, "--reference", SHIPPED, "--plot", tmp_path / "a.png")
    assert code == 1 and "only an ONNX bundle's errors can be plotted" in error
    monkeypatch.setattr(memory, "available", lambda: 1000)
    code, out, _ = run_cli(*given, "-o", tmp_path / "large")
    assert code == 0 and "quality not measured: model.pte: its KV cache needs 0.0 GiB" in out
    code, _, error = run_cli(*evaluated)
    assert code == 1 and "model.pte: its KV cache needs" in error


def make_session(checkpoint: Path, out: Path, recipe: Recipe) -> Session:
    return open_session(
        export(checkpoint, out, "executorch", recipe=recipe, gate=None), Loading(threads=1)
    )


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(kv_bits=32),
        Recipe(bits=4, group_size=32, head_bits=4, embedding_bits=8, kv_bits=32),
        Recipe(bits=8, head_bits=8, embedding_bits=8, kv_bits=32),
    ],
)
def test_quantized_hrm_tiny_equals_its_emulation(tmp_path: Path, recipe: Recipe) -> None:
    session, emulated = make_session(SHIPPED, tmp_path / "pte", recipe), emulate(SHIPPED, recipe)
    tokenizer, same, differences = Tokenizer(SHIPPED), [], []
    for row in read_rows(SHIPPED / "questions.jsonl")[::45]:
        ids, answer = tokenizer.encode(format_prompt(row["instruction"])), row["response"]
        cache = KVCache(emulated.config, 1, 256)
        logits, expected = session.prefill(ids), run(emulated, ids, cache)
        for token in tokenizer.encode(answer):
            same.append(logits.argmax() == expected.argmax())
            differences.append(relative(expected, logits))
            logits, expected = session.decode([token])[0], run(emulated, [token], cache)
    assert len(same) > 200
    assert np.mean(same) >= 0.99, np.mean(same)
    assert np.median(differences) < 0.01, np.median(differences)


@torch.no_grad()
def run(model: HRMText, ids: list[int], cache: KVCache) -> np.ndarray:
    return model(torch.tensor([ids]), cache=cache)[0, -1].numpy()


class Emulated(nn.Module):
    """A linear with rounded weights over inputs that are rounded to 8 bits a token."""

    def __init__(self, weight: Tensor, bits: int, group_size: int) -> None:
        super().__init__()
        self.weight = rounded(weight, bits, group_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_input(x), self.weight)


def emulate(path: Path, recipe: Recipe) -> HRMText:
    """The reference model with the arithmetic of XNNPACK's dynamically quantized linears."""
    model, group = load_ours(path), recipe.group_size
    for block in model.blocks():
        for parent, name in ((block.attn, "gqkv"), (block.attn, "o"), (block.mlp, "gate_up")):
            replace_linear(parent, f"{name}_proj", recipe.bits, group)
        replace_linear(block.mlp, "down_proj", recipe.bits, group)
    head = Emulated(model.lm_head.weight.data, recipe.head_bits, group)
    model.__dict__["head"] = head  # a method otherwise
    table = model.model.embed_tokens.weight
    columns, bits = table.shape[1], recipe.embedding_bits
    found = quantize(table.detach().numpy(), bits, row_group("", columns, group, bits))
    table.data = torch.from_numpy(dequantize(found, bits, columns))
    return model


def replace_linear(parent: nn.Module, name: str, bits: int, group: int) -> None:
    setattr(parent, name, Emulated(getattr(parent, name).weight.data, bits, group))


def rounded(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """4 bits in groups with bf16 scales, or 8 bits with a scale a row."""
    columns = weight.shape[1]
    group = row_group("", columns, group_size, bits)
    found = quantize(weight.numpy(), bits, group, positive=True)
    scales = torch.from_numpy(found.scales)
    scales = scales.bfloat16().float() if bits == 4 else scales
    return torch.from_numpy(dequantize(Quantized(found.codes, scales.numpy()), bits, columns))


def rounded_input(x: Tensor) -> Tensor:
    """Rows of x on 256 steps between their least and greatest value, zero among them.

    As xnn_f32_qd8_asymmetric_quantization_params (XNNPACK, src/params.c) has it.
    """
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = 255 / (high - low)
    low, high = low * scale, high * scale
    zero = torch.where(-128 + low + 127 + high > 0, -128 - low, 127 - high)
    zero = zero.clamp(-128, 127).round()
    return ((x * scale).round().add(zero).clamp(-128, 127) - zero) / scale

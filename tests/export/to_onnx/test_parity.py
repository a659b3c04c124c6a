"""Exports and the reference model against transformers, and against stock onnxruntime-genai."""

import importlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HrmTextForCausalLM

from hrm_edge.bundle import Bundle
from hrm_edge.config import HRMTextConfig
from hrm_edge.export import Recipe, export
from hrm_edge.model import KVCache
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from references import load_ours, load_reference, prompt, random_shapes, relative
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

og: Any = importlib.import_module("onnxruntime_genai")  # ships without types
FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
STEPS = 16
SHAPES = random_shapes(20, (32, 64, 128), (96, 160, 256))
LENGTHS = [1, 200, *random.Random(5).choices(range(2, 200), k=18)]


@pytest.mark.parametrize(("shape", "length"), list(zip(SHAPES, LENGTHS, strict=True)))
def test_fp32_graph_and_reference_model_equal_transformers(
    tmp_path: Path, shape: Shape, length: int
) -> None:
    path = write_model(tmp_path / "model", shape)
    reference, ours = load_reference(path), load_ours(path)
    session = open_session(export(path, tmp_path / "onnx", recipe=FLOAT), Loading(threads=2))
    sequence = prompt(length, shape.seed)
    cache = KVCache(ours.config, 1, length + STEPS + 3)
    with torch.no_grad():
        torch_logits = ours(torch.tensor([sequence]), cache=cache)[0, -1].numpy()
    onnx_logits = session.prefill(sequence)
    for _ in range(STEPS):
        expected = reference.logits(sequence, length)[0]
        assert relative(expected, onnx_logits) < 1e-5
        assert relative(expected, torch_logits) < 1e-5
        token = int(expected.argmax())
        assert token == onnx_logits.argmax() == torch_logits.argmax()
        sequence.append(token)
        onnx_logits = session.decode([token])[0]
        with torch.no_grad():
            torch_logits = ours(torch.tensor([[token]]), cache=cache)[0, -1].numpy()
    chunk = prompt(3, shape.seed + 1)
    expected = reference.logits(sequence + chunk, length, last=3)
    assert relative(expected, session.decode(chunk)) < 1e-5


def test_a_causal_prompt_differs_from_a_prefix(shared_checkpoint: Path, tmp_path: Path) -> None:
    reference = load_reference(shared_checkpoint)
    session = open_session(
        export(shared_checkpoint, tmp_path / "onnx", recipe=FLOAT), Loading(threads=2)
    )
    ids = prompt(20, 0)
    prefix = session.prefill(ids)
    session.prefill(ids[:1])
    causal = session.decode(ids[1:])[-1]  # one id of prefix, the others causally
    assert relative(reference.logits(ids, len(ids))[0], prefix) < 1e-5
    assert relative(reference.logits(ids, 1)[0], causal) < 1e-5
    assert relative(reference.logits(ids, len(ids))[0], causal) > 1e-2


def test_a_causal_model_is_exported_as_causal(checkpoint: Path, tmp_path: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"prefix_lm": true', '"prefix_lm": false'))
    reference = load_reference(checkpoint)
    session = open_session(export(checkpoint, tmp_path / "onnx", recipe=FLOAT), Loading(threads=2))
    ids = prompt(20, 0)
    assert relative(reference.logits(ids, 0)[0], session.prefill(ids)) < 1e-5
    assert relative(reference.logits([*ids, 30, 40], 0, last=2), session.decode([30, 40])) < 1e-5


def test_rewind_forgets_the_last_tokens(shared_bundle: Path) -> None:
    session = open_session(Bundle.open(shared_bundle), Loading(threads=2))
    session.prefill(prompt(9, 0))
    expected = session.decode([20])[0]
    session.decode([30, 40])
    session.rewind(3)
    np.testing.assert_array_equal(session.decode([20])[0], expected)


@pytest.mark.parametrize("recipe", [FLOAT, Recipe(bits=4, group_size=32)])
@pytest.mark.parametrize("kv_bits", [32, 8])
def test_stock_genai_gives_our_greedy_tokens(
    shared_checkpoint: Path, tmp_path: Path, recipe: Recipe, kv_bits: int
) -> None:
    recipe = replace(recipe, kv_bits=kv_bits)
    bundle = export(shared_checkpoint, tmp_path / "bundle", recipe=recipe)
    ids = prompt(12, 4)
    session = open_session(bundle, Loading(threads=2, max_context=64))
    expected, logits = [], session.prefill(ids)
    while len(expected) < 20 and (not expected or expected[-1] != 11):
        expected.append(int(logits.argmax()))
        logits = session.decode([expected[-1]])[0]
    assert len(set(expected)) > 3, "a model that repeats itself would prove little"
    assert genai_tokens(bundle.path, ids, len(expected)) == expected


def genai_tokens(path: Path, ids: list[int], count: int) -> list[int]:
    """What unmodified onnxruntime-genai generates greedily."""
    model = og.Model(str(path))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    tokens = []
    for _ in range(count):
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def test_config_of_the_reference_is_read_alike(shared_checkpoint: Path) -> None:
    theirs = HrmTextForCausalLM.from_pretrained(shared_checkpoint).config
    ours = HRMTextConfig.from_file(shared_checkpoint / "config.json")
    assert ours.layers_per_stack == theirs.num_layers_per_stack
    assert ours.cache_slots == theirs.num_hidden_layers
    assert ours.embedding_scale == theirs.embedding_scale

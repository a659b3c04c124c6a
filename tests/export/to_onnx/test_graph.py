"""The graph itself: every weight once, every norm fused, nothing lost in the small print."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_model import SHRINK
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import open_session
from tiny_models import Shape, write_model

SHAPE = Shape(layers=2, H=2, L=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("graph")
    return export(write_model(path / "model", SHAPE), path / "bundle")


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of `If` branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def test_each_weight_is_stored_once_and_used_by_every_pass(bundle: Bundle) -> None:
    graph = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph
    codes = [n.input[1] for n in nodes(graph) if n.op_type == "MatMulNBits"]
    uses = Counter(name.split(".layers")[0] for name in codes)
    assert uses["model.L_module"] == 6 * 4 * SHAPE.layers
    assert uses["model.H_module"] == 2 * 4 * SHAPE.layers
    assert len(set(codes)) == 2 * 4 * SHAPE.layers + 1
    names = [i.name for i in graph.initializer]
    assert len(names) == len(set(names))


def test_norms_and_additions_are_all_fused(bundle: Bundle) -> None:
    graph = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph
    kinds = Counter(node.op_type for node in nodes(graph))
    passes = 8
    assert kinds["SkipSimplifiedLayerNormalization"] == passes * (2 * SHAPE.layers + 1)
    assert kinds["GroupQueryAttention"] == kinds["MultiHeadAttention"] == passes * SHAPE.layers
    assert not {"Add", "LayerNormalization", "SimplifiedLayerNormalization"} & set(kinds)


@pytest.mark.parametrize("head_bits", [4, 8, 32])
def test_a_tied_table_is_stored_once(tmp_path: Path, head_bits: int) -> None:
    path = write_model(tmp_path / "model", Shape(tied=True))
    bundle = export(path, tmp_path / "bundle", recipe=Recipe(head_bits=head_bits))
    model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
    places = {
        init.name: next(e.value for e in init.external_data if e.key == "offset")
        for init in model.graph.initializer
        if init.name.startswith("model.embed_tokens") and "scales" not in init.name
    }
    assert len(set(places.values())) == 1
    assert bundle.manifest.quantization.embedding_bits == head_bits


def test_int4_logits_are_those_of_the_dequantized_weights(tmp_path: Path) -> None:
    """MatMulNBits rounds activations to 8 bits; apart from that, the graph is exact."""
    from hrm_edge.checkpoint import Checkpoint, write_checkpoint
    from hrm_edge.export.quantize.grid import dequantize, quantize

    source = Checkpoint.open(write_model(tmp_path / "model", SHAPE))
    recipe = Recipe(bits=4, group_size=32, head_bits=8, embedding_bits=4, kv_bits=32)

    def rounded(name: str) -> np.ndarray:
        weight = source.float32(name)
        if weight.ndim == 1:
            return weight
        bits = recipe.head_bits if name == "lm_head.weight" else 4
        return dequantize(quantize(weight, bits, 32), bits, weight.shape[1])

    tensors = ((name, rounded(name)) for name in source.names())
    write_checkpoint(tmp_path / "rounded", source.config, tensors, "float32", source.path)
    exact = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    ids = list(range(20, 60))
    expected = open_session(
        export(tmp_path / "rounded", tmp_path / "a", recipe=exact), Loading(threads=1)
    ).prefill(ids)
    got = open_session(
        export(source.path, tmp_path / "b", recipe=recipe), Loading(threads=1)
    ).prefill(ids)
    assert np.abs(got - expected).max() / np.abs(expected).max() < 0.05


@pytest.mark.parametrize(
    ("kv_bits", "kv_h_bits", "error"), [(8, None, 0.03), (4, None, 0.3), (4, 8, 0.2)]
)
def test_a_quantized_cache_stays_close(
    tmp_path: Path, kv_bits: int, kv_h_bits: int | None, error: float
) -> None:
    path = write_model(tmp_path / "model", SHAPE)
    exact32 = Recipe(32, 128, 32, 32, 32)
    recipes = [exact32, replace(exact32, kv_bits=kv_bits, kv_h_bits=kv_h_bits)]
    exact, coarse = (
        open_session(export(path, tmp_path / str(i), recipe=recipe), Loading(threads=1))
        for i, recipe in enumerate(recipes)
    )
    ids = list(range(20, 80))
    np.testing.assert_array_equal(exact.prefill(ids), coarse.prefill(ids))  # it reads no cache
    expected, got = exact.decode([99]), coarse.decode([99])
    assert 0 < np.abs(got - expected).max() / np.abs(expected).max() < error


@pytest.mark.parametrize(("kv_bits", "dtype"), [(32, "<f4"), (8, "i1"), (4, "u1")])
def test_the_prefix_writes_what_decoding_writes(tmp_path: Path, kv_bits: int, dtype: str) -> None:
    """Slot 0 holds what embeddings alone make, so it is the same either way, code by code."""
    recipe = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=kv_bits)
    bundle = export(write_model(tmp_path / "m", SHAPE), tmp_path / "b", recipe=recipe, gate=None)
    session, ids = open_session(bundle, Loading(threads=1, max_context=64)), list(range(20, 80))
    assert isinstance(session, OnnxSession)
    size = len(ids) * SHAPE.heads * SHAPE.head_dim * kv_bits // 8 * 2  # of keys and values
    caches = []
    for first in (len(ids), 1):
        session.prefill(ids[:first])
        if ids[first:]:
            session.decode(ids[first:])
        caches.append(session._model.cache.read(0, len(ids))[:size].view(dtype))
    assert caches[0].any()
    np.testing.assert_allclose(*caches, rtol=1e-4, atol=1e-5)


def test_the_scratch_of_a_prefix_is_given_back(bundle: Bundle) -> None:
    session = open_session(bundle, Loading(threads=1, max_context=64))
    assert isinstance(session, OnnxSession)
    session.prefill([20, 21])
    assert session._model._running.get_run_config_entry(SHRINK) == "cpu:0"
    session.decode([22])
    with pytest.raises(RuntimeError, match=SHRINK):
        session._model._running.get_run_config_entry(SHRINK)


@pytest.mark.parametrize("kv_bits", [32, 8, 4])
@pytest.mark.parametrize("head_dim", [16, 48, 80])
def test_every_head_dim_that_is_exported_runs(tmp_path: Path, head_dim: int, kv_bits: int) -> None:
    path = write_model(tmp_path / "model", Shape(head_dim=head_dim))
    session = open_session(export(path, tmp_path / "bundle", kv_bits=kv_bits, gate=None))
    assert np.isfinite(session.prefill([20, 21, 22])).all()
    assert np.isfinite(session.decode([23])).all()


@pytest.mark.parametrize("head_dim", [8, 12, 24, 40])
def test_a_head_dim_the_kernels_cannot_take_is_refused(tmp_path: Path, head_dim: int) -> None:
    """8, 24 and 40 would be exported and then refused by ONNX Runtime when they are loaded."""
    path = write_model(tmp_path / "model", Shape(head_dim=head_dim))
    with pytest.raises(HRMEdgeError, match=f"head_dim is {head_dim}; .* a multiple of 16"):
        export(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_max_seq_len_bounds_the_tables(tmp_path: Path, shared_checkpoint: Path) -> None:
    bundle = export(shared_checkpoint, tmp_path / "bundle", max_seq_len=64)
    assert bundle.manifest.max_seq_len == 64
    with pytest.raises(HRMEdgeError, match="max_seq_len is 999, expected 2 to 256"):
        export(shared_checkpoint, tmp_path / "other", max_seq_len=999)


def test_no_branch_of_a_branch_multiplies_by_weights(bundle: Bundle) -> None:
    """ONNX Runtime packs no weight for those: such a call would take 30 times as long."""
    graph = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph
    outer = [a.g for n in graph.node if n.op_type == "If" for a in n.attribute]
    inner = [a.g for b in outer for n in b.node if n.op_type == "If" for a in n.attribute]
    assert inner and not any(n.op_type == "MatMulNBits" for b in inner for n in b.node)


def test_no_branch_holds_weights_or_hides_a_name(bundle: Bundle) -> None:
    """ONNX Runtime packs a weight of the outer graph once, however many branches use it."""
    graph = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph
    branches = [a.g for n in nodes(graph) if n.op_type == "If" for a in n.attribute]
    model = bundle.manifest.model
    assert len(branches) == 2 * (model.cache_slots + sum(model.skippable))
    assert not any(branch.initializer for branch in branches)
    names = [name for node in nodes(graph) for name in node.output if name]
    assert len(names) == len(set(names))

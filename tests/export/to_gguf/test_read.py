"""GGUF files read back: the weights, the kept blocks, the tokenizer, an ONNX bundle, bad files."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFWriter, quants
from gguf import GGMLQuantizationType as Q

from benchmarks.llamacpp import Llama
from gguf_reading import TEXT, llamacpp_values, train_tokenizer
from hrm_edge.bundle import Manifest
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.export.quantize.grid import Quantized, dequantize
from hrm_edge.export.quantize.plan import make_plan
from hrm_edge.export.recipe import GPTQ, Calibration
from hrm_edge.export.targets import GGUFTarget, OnnxTarget
from hrm_edge.export.to_gguf.read import READABLE, GGUFCheckpoint, open_gguf
from hrm_edge.export.to_gguf.write import write_gguf
from hrm_edge.export.to_onnx.write import write_onnx
from hrm_edge.prompt import Tokenizer
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from tiny_models import VOCAB, Shape, write_model

SHAPE = Shape(layers=2, L=1, seed=7)
LINEAR = "model.H_module.layers.1.attn.gqkv_proj.weight"


def gguf_of(checkpoint: Path, type_name: str) -> Path:
    """The GGUF file of `checkpoint`, beside it."""
    out = checkpoint.parent / type_name
    out.mkdir()
    write_gguf(make_plan(Checkpoint.open(checkpoint), GGUFTarget(type_name)), out, 256)
    return out / "model.gguf"


def reopened(checkpoint: Path, type_name: str) -> GGUFCheckpoint:
    """`checkpoint` written as GGUF and opened again."""
    scratch = checkpoint.parent / "scratch"
    scratch.mkdir()
    return open_gguf(gguf_of(checkpoint, type_name), scratch)


@pytest.mark.parametrize(
    ("kind", "error"), [("f32", 0), ("f16", 3e-4), ("bf16", 3e-3), ("q8_0", 8e-3), ("q4_0", 0.11)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_come_back(tmp_path: Path, kind: str, error: float, tied: bool) -> None:
    original = Checkpoint.open(write_model(tmp_path / "checkpoint", Shape(layers=2, tied=tied)))
    copy = reopened(original.path, kind)
    assert copy.names() == original.names()
    assert copy.config == original.config
    for name in original.names():
        weight = original.float32(name)
        difference = np.abs(copy.float32(name) - weight)
        assert np.sqrt(np.square(difference).mean()) <= error * weight.std()
    np.testing.assert_array_equal(copy.float32(LINEAR, slice(3, 9)), copy.float32(LINEAR)[3:9])


@pytest.mark.parametrize(("kind", "bits"), [("q4_0", 4), ("q8_0", 8)])
def test_blocks_are_kept_as_they_are(tmp_path: Path, kind: str, bits: int) -> None:
    copy = reopened(write_model(tmp_path / "checkpoint", SHAPE), kind)
    kept = copy.codes(LINEAR, bits, 32)
    assert kept is not None
    np.testing.assert_array_equal(dequantize(Quantized(*kept), bits, 64), copy.float32(LINEAR))
    assert copy.codes(LINEAR, bits, 128) is None and copy.codes(LINEAR, 12 - bits, 32) is None


@pytest.mark.filterwarnings("ignore:invalid value")  # scales of infinity
@pytest.mark.parametrize("qtype", [q for q in READABLE if q not in (Q.F32, Q.F16, Q.BF16)])
def test_every_readable_type_means_what_llamacpp_means(qtype: Q) -> None:
    weights, size = GGML_QUANT_SIZES[qtype]
    blocks = np.random.default_rng(int(qtype)).integers(0, 256, (64, size), np.uint8)
    values = quants.dequantize(blocks, qtype)
    theirs = llamacpp_values(blocks, qtype, 64 * weights).reshape(values.shape)
    finite = np.isfinite(theirs).all(-1)
    assert finite.sum() > 50
    np.testing.assert_allclose(values[finite], theirs[finite], rtol=1e-6)


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    for pre in ("gpt-2", "smollm", "qwen2", "dbrx", "llama-bpe"):
        checkpoint = write_model(tmp_path / pre / "checkpoint", Shape())
        train_tokenizer(pre).save(str(checkpoint / "tokenizer.json"))
        copy = reopened(checkpoint, "f16")
        ours, theirs = Tokenizer(checkpoint), Tokenizer(copy.path)
        ids = ours.encode(TEXT)
        assert theirs.encode(TEXT) == ids
        assert theirs.decode(ids) == ours.decode(ids)


def test_a_gguf_file_becomes_an_onnx_bundle_that_answers_alike(tmp_path: Path) -> None:
    copy = reopened(write_model(tmp_path / "checkpoint", SHAPE), "f32")
    out = tmp_path / "bundle"
    out.mkdir()
    recipe = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    write_onnx(make_plan(copy, OnnxTarget(recipe)), out, 64)
    session = OnnxSession(out, Manifest.read(out), 64, Loading(threads=1))
    ids = np.random.default_rng(2).integers(14, VOCAB, 20).tolist()
    with Llama(copy.source, 64, 1, kv="f32", flash="off") as llama:
        expected = [llama.prefill(ids), *(llama.decode([i])[0] for i in ids[:4])]
    found = [session.prefill(ids), *session.decode(ids[:4])]
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize(("kind", "bits"), [("q4_0", 4), ("q8_0", 8)])
def test_export_keeps_the_blocks_of_a_gguf_file(tmp_path: Path, kind: str, bits: int) -> None:
    copy = reopened(write_model(tmp_path / "checkpoint", SHAPE), kind)
    kept = copy.codes(LINEAR, bits, 32)
    assert kept is not None
    bundle = export(copy.source, tmp_path / "bundle", bits=bits, group_size=32, head_bits=8)
    stored = (bundle.path / "model.onnx.data").read_bytes()
    for array in kept:
        assert array.tobytes() in stored
    for name in ("tokenizer.json", "generation_config.json"):
        assert (bundle.path / name).is_file()


def test_bad_files_are_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    good = gguf_of(checkpoint, "f16")
    bad = tmp_path / "bad.gguf"

    def refuses(named: str) -> None:
        with pytest.raises(HRMEdgeError, match=named) as caught:
            open_gguf(bad, tmp_path)
        assert "\n" not in str(caught.value) and "bad.gguf" in str(caught.value)

    refuses("no such file")
    bad.write_bytes(b"hello" * 100)
    refuses("not a GGUF file")
    for part in (0.0001, 0.3, 0.9, 0.999):
        bad.write_bytes(good.read_bytes()[: int(part * good.stat().st_size)])
        refuses("damaged or truncated")
    write_keys(bad, "llama", {})
    refuses("architecture is 'llama', expected 'hrm_text'")
    write_keys(bad, "hrm_text", {"layers_per_stack": 2, "h_cycles": 2, "l_cycles": 3})
    refuses("hrm_text.layers_per_stack is now hrm_text.hrm.layers_per_stack")
    write_keys(bad, "hrm_text", {"hrm.h_cycles": 2})
    refuses("L_cycles is None, expected a whole number from 1 to")


def test_a_type_without_reader_and_a_missing_tensor_are_named(checkpoint: Path) -> None:
    good = gguf_of(checkpoint, "f16")
    raw = good.read_bytes()
    renamed = raw.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    good.write_bytes(renamed)
    with pytest.raises(HRMEdgeError, match=r"lacks the tensor blk\.1\.ffn_up\.weight"):
        open_gguf(good, good.parent)
    where = raw.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 2 * 8
    good.write_bytes(raw[:where] + int(Q.TQ1_0).to_bytes(4, "little") + raw[where + 4 :])
    with pytest.raises(HRMEdgeError, match=r"TQ1_0|damaged"):
        open_gguf(good, good.parent)


def write_keys(path: Path, architecture: str, counts: dict[str, int]) -> None:
    """A GGUF file without tensors that holds `counts` below its architecture's name."""
    writer = GGUFWriter(path, architecture)
    for key, value in counts.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def test_a_method_of_ones_own_replaces_the_blocks_of_a_gguf_file(tmp_path: Path) -> None:
    """Stored codes are for plain rounding: what GPTQ decides is what is stored."""
    copy = reopened(write_model(tmp_path / "checkpoint", SHAPE), "q4_0")
    recipe = Recipe(group_size=32, method=GPTQ(), calibration=Calibration(tokens=200))
    kept = copy.codes(LINEAR, 4, 32)
    assert kept is not None
    found = make_plan(copy, OnnxTarget(recipe)).tensor(LINEAR)
    plain = make_plan(copy, OnnxTarget(Recipe(group_size=32))).tensor(LINEAR)
    assert isinstance(found, Quantized) and isinstance(plain, Quantized)
    np.testing.assert_array_equal(plain.codes, kept[0])
    assert (found.codes != kept[0]).any()

"""A bundle that is not exactly what was exported is refused by name."""

import json
import re
from pathlib import Path

import pytest

from hrm_edge.bundle import Bundle, KVCache, Manifest
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path) -> Path:
    return export(checkpoint, tmp_path / "bundle").path


def test_a_manifest_survives_writing(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    manifest.write(bundle)
    assert Manifest.read(bundle) == manifest
    assert manifest.eos_token_ids == (11,)
    assert set(manifest.files) == {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }


def test_the_cache_of_the_published_model_is_as_large_as_published() -> None:
    config = HRMTextConfig(65536, 1536, 4096, 16, 12, 128, 2, 3, 4096, 39.0, 0.0255)
    sizes = {bits: KVCache.of(config, bits).bytes_per_token for bits in (32, 8, 4)}
    assert sizes == {32: 1_572_864, 8: 393_216, 4: 196_608}
    assert KVCache.of(config, 4, 8).bytes_per_token == 196_608 * 5 // 4  # a quarter are of H passes


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    with pytest.raises(HRMEdgeError, match=r"model\.onnx\.data: missing from the bundle"):
        Bundle.open(bundle)


def test_a_truncated_file_is_named_with_both_sizes(bundle: Path) -> None:
    file = bundle / "model.onnx.data"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(HRMEdgeError, match=f"{size - 100} bytes, the manifest says {size}"):
        Bundle.open(bundle)


def test_an_altered_file_is_found_by_its_hash(bundle: Path) -> None:
    file = bundle / "model.onnx.data"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    Bundle.open(bundle)
    with pytest.raises(HRMEdgeError, match="its content differs from what was exported"):
        Bundle.open(bundle, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2, not 1; update hrm-edge"),
        ({"format_version": 0}, "format_version is 0, not 1; export the checkpoint again"),
        ({"files": None}, "damaged manifest"),
        ({"kv_cache": {"bits": 8}}, "damaged manifest"),
        ({"model": {"model_type": "llama"}}, "model_type is 'llama'"),
    ],
)
def test_a_foreign_manifest_is_refused(bundle: Path, change: dict, message: str) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(HRMEdgeError, match=re.escape(message)):
        Bundle.open(bundle)


def test_a_directory_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(HRMEdgeError, match="not a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(HRMEdgeError, match="no such bundle directory"):
        Bundle.open(tmp_path / "none")

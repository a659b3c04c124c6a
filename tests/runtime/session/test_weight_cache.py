"""Packed weights in a file: the same logits, made once, and made again if anything is amiss."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.runtime import load
from hrm_edge.runtime.session import weight_cache
from hrm_edge.runtime.session.loading import weight_cache_directory
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

PROMPT = list(range(20, 40))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Small, but for its MLPs: their weights are large enough to be kept packed."""
    path = tmp_path_factory.mktemp("wide")
    shape = Shape(heads=8, head_dim=32, intermediate=9216)
    return export(write_model(path / "model", shape), path / "bundle")


@pytest.fixture(scope="module")
def made(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the copy of `bundle`, for tests that do not change it."""
    cache = tmp_path_factory.mktemp("cache")
    load(bundle.path, threads=1, weight_cache=cache)
    return cache


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy of `made`."""
    return Path(shutil.copytree(made, tmp_path / "cache"))


def entry(cache: Path) -> Path:
    """The one copy in `cache`, which holds nothing else."""
    (found,) = cache.iterdir()
    return found


def logits(path: Path, **options: Any) -> np.ndarray:
    session = load(path, threads=1, **options).session
    rows = [session.prefill(PROMPT)[None], session.decode([50]), session.decode([51, 52, 53])]
    return np.concatenate(rows)


def test_logits_are_the_same_to_the_bit(bundle: Bundle, made: Path) -> None:
    np.testing.assert_array_equal(logits(bundle.path), logits(bundle.path, weight_cache=made))


def test_the_large_weights_lie_packed_in_the_file(bundle: Bundle, made: Path) -> None:
    """Every one of them aligned; ONNX Runtime 1.31.1 turns others into NaN."""
    import onnx

    graph = onnx.load(str(entry(made) / "model.onnx"), load_external_data=False).graph
    offsets = {
        part.key: int(part.value.split("|")[1].split(";")[0])
        for tensor in graph.initializer
        for part in tensor.external_data
        if part.key.startswith("prepacked")
    }
    assert offsets and all(offset % 64 == 0 for offset in offsets.values())


def test_a_copy_is_made_once(bundle: Bundle, cache: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in entry(cache).iterdir()}
    load(bundle.path, threads=1, weight_cache=cache)
    assert before == {file: file.stat().st_mtime_ns for file in entry(cache).iterdir()}


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "sizes.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "altered"])
def test_a_damaged_copy_is_made_again(
    bundle: Bundle, cache: Path, made: Path, name: str, damage: str
) -> None:
    file = entry(cache) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 255])
        rest = b"" if damage == "truncated" else flipped + content[middle + 1 :]
        file.write_bytes(content[:middle] + rest)
    got = logits(bundle.path, weight_cache=cache, verify=damage == "altered")
    np.testing.assert_array_equal(got, logits(bundle.path, weight_cache=made))
    assert weight_cache._whole(entry(cache), verify=True)


def test_another_bundle_processor_or_version_is_another_copy(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, keys = bundle.manifest, {weight_cache.key(bundle.manifest)}
    other = replace(manifest.files["model.onnx.data"], sha256="0" * 64)
    keys.add(
        weight_cache.key(replace(manifest, files={**manifest.files, "model.onnx.data": other}))
    )
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "_processor", lambda: ["another"])
        keys.add(weight_cache.key(manifest))
    with monkeypatch.context() as patch:
        patch.setattr(ort, "__version__", "1.99")
        keys.add(weight_cache.key(manifest))
    assert len(keys) == 4


def test_a_bundle_with_another_ones_manifest_fills_no_cache(bundle: Bundle, tmp_path: Path) -> None:
    """Its copy would be taken for that of the honest bundle."""
    forged = Path(shutil.copytree(bundle.path, tmp_path / "forged"))
    data = bytearray((forged / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 255
    (forged / "model.onnx.data").write_bytes(data)
    with pytest.raises(HRMEdgeError, match="its content differs from what was exported"):
        load(forged, threads=1, weight_cache=tmp_path / "cache")
    got = logits(bundle.path, weight_cache=tmp_path / "cache")
    np.testing.assert_array_equal(got, logits(bundle.path))


def test_weights_edited_in_place_are_noticed(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(bundle.path, tmp_path / "edited"))
    load(edited, threads=1, weight_cache=cache)
    with (edited / "model.onnx.data").open("r+b") as file:
        file.seek(4096)
        file.write(b"\0\1\2\3")
    with pytest.raises(HRMEdgeError, match="its content differs from what was exported"):
        load(edited, threads=1, weight_cache=cache)


@pytest.mark.parametrize("failure", ["other logits", "interrupted", "disk full"])
def test_making_that_fails_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    answers, errors = weight_cache._logits, (KeyboardInterrupt, HRMEdgeError)

    def spoiled(path: str, options: ort.SessionOptions) -> np.ndarray:
        found = answers(path, options)
        if path == str(bundle.path / "model.onnx"):
            return found
        if failure == "interrupted":
            raise KeyboardInterrupt
        if failure == "disk full":
            raise OSError(28, "No space left on device")
        return found + 1

    monkeypatch.setattr(weight_cache, "_logits", spoiled)
    words = {"other logits": "computes something else", "disk full": "the disk is full"}
    with pytest.raises(errors, match=words.get(failure)):
        load(bundle.path, threads=1, weight_cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_that_make_it_at_once_the_first_one_stays(cache: Path, made: Path) -> None:
    before = entry(made).stat().st_ino
    weight_cache._install(entry(cache), entry(made), cache / "old")
    assert entry(made).stat().st_ino == before


def test_off_auto_and_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weight_cache_directory("off") is None
    assert weight_cache_directory("auto") == tmp_path / "hrm-edge" / "weights"
    assert weight_cache_directory("here") == Path("here")


def test_the_command_line_uses_it(
    run_cli: Callable[..., tuple[int, str, str]], bundle: Bundle, made: Path
) -> None:
    command = ("generate", bundle.path, "Hi", "-n", 4, "-t", 1, "--json", "--weight-cache")
    answers = [run_cli(*command, where) for where in ("off", made)]
    assert [code for code, _, _ in answers] == [0, 0]
    assert len({json.loads(out)["text"] for _, out, _ in answers}) == 1


def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    run_cli: Callable[..., tuple[int, str, str]], bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run_cli("generate", bundle.path, "Hi", "--weight-cache", tmp_path / "file")
    assert code == 1 and "cannot be written" in err and len(err.splitlines()) == 1

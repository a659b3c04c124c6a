"""Prefixes kept on disk, and whether a bundle fits."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hrm_edge import fit, memory
from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import Model, load
from tiny_models import Shape, write_model

QUESTION = "What is kept, and where?"


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    model.generate(QUESTION, max_tokens=5)
    model.save_prefix(tmp_path / "prefix.kv")
    return tmp_path / "prefix.kv"


@pytest.mark.parametrize(("kv_bits", "kv_h_bits"), [(32, None), (8, None), (4, None), (4, 8)])
def test_a_restored_prefix_answers_alike_without_a_prefill(
    shared_checkpoint: Path,
    tmp_path: Path,
    kv_bits: int,
    kv_h_bits: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe(kv_bits=kv_bits, kv_h_bits=kv_h_bits)
    bundle = export(shared_checkpoint, tmp_path / "b", recipe=recipe).path
    first = load(bundle, threads=1, max_context=90)
    expected = first.generate(QUESTION, max_tokens=20)
    first.save_prefix(tmp_path / "prefix.kv")
    again = load(bundle, threads=1, max_context=64)
    again.restore_prefix(tmp_path / "prefix.kv")
    monkeypatch.setattr(again.session, "prefill", None)
    assert again.generate(QUESTION, max_tokens=20).tokens == expected.tokens
    per_token = Bundle.open(bundle).manifest.kv_cache.bytes_per_token
    cache = per_token * expected.stats.prompt_tokens
    assert cache < (tmp_path / "prefix.kv").stat().st_size < cache + 4 * 288 + 1000


def test_a_file_is_replaced_as_a_whole(model: Model, saved: Path) -> None:
    model.generate("Another", max_tokens=1)
    model.save_prefix(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["prefix.kv"]
    model.restore_prefix(saved)
    assert model.session.prefix == model.encode("Another", "direct")


@pytest.mark.parametrize("change", ["cut", "longer", "flip"])
def test_a_damaged_file_is_refused_and_changes_nothing(
    model: Model, saved: Path, change: str
) -> None:
    raw = bytearray(saved.read_bytes())
    if change == "flip":
        raw[-20] ^= 1
    saved.write_bytes({"cut": raw[:-7], "longer": raw + b"12", "flip": raw}[change])
    expected = model.generate("Hello", max_tokens=5).tokens
    with pytest.raises(HRMEdgeError, match="damaged or truncated; remove it"):
        model.restore_prefix(saved)
    assert model.generate("Hello", max_tokens=5).tokens == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 3', '"version": 2', "of version 2, not 3"),
        ("hrm-edge prefix", "somebody else's", "not a saved prefix"),
        ('"bundle": "', '"bundle": "0', "made with another bundle"),
    ],
)
def test_a_file_of_something_else_is_refused(
    model: Model, saved: Path, old: str, new: str, message: str
) -> None:
    saved.write_bytes(saved.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(HRMEdgeError, match=message):
        model.restore_prefix(saved)


def test_the_bundle_and_the_context_must_be_right(
    model: Model, saved: Path, shared_bundle: Path, tmp_path: Path
) -> None:
    other = export(write_model(tmp_path / "c", Shape(layers=2, seed=4)), tmp_path / "b").path
    with pytest.raises(HRMEdgeError, match="made with another bundle"):
        load(other, threads=1).restore_prefix(saved)
    with pytest.raises(HRMEdgeError, match="holds 27 tokens, max_context is 20"):
        load(shared_bundle, threads=1, max_context=20).restore_prefix(saved)
    with pytest.raises(HRMEdgeError, match="there is no prompt to save"):
        load(other, threads=1).save_prefix(tmp_path / "x.kv")
    with pytest.raises(HRMEdgeError, match="cannot be read"):
        model.restore_prefix(tmp_path / "none.kv")


def test_the_estimate_covers_what_a_full_context_takes(
    tmp_path: Path, shared_checkpoint: Path
) -> None:
    bundle = export(shared_checkpoint, tmp_path / "b", bits=32, kv_bits=32)
    code = """
import sys
from hrm_edge import memory
from hrm_edge.runtime import load
load(sys.argv[1], threads=1).session.prefill([20] * 16)  # the libraries' own memory
before = memory.anonymous()
session = load(sys.argv[1], threads=1).session
session.prefill([20 + i % 200 for i in range(250)])
print(memory.anonymous() - before)
"""
    taken = int(subprocess.check_output([sys.executable, "-c", code, bundle.path], text=True))
    assert taken < fit.need(bundle.manifest, 256).total


def test_what_fits_is_told_or_refused(shared_bundle: Path, monkeypatch) -> None:
    manifest = Bundle.open(shared_bundle).manifest
    assert fit.shortage(Bundle.open(shared_bundle), 256) is None
    room = fit.need(manifest, 100).total
    monkeypatch.setattr(memory, "available", lambda: room)
    line = fit.shortage(Bundle.open(shared_bundle), 256)
    assert line is not None and "--max-context 100 would fit" in line and "\n" not in line
    assert re.search(r"needs about \d+ MiB \(weights \d+ MiB, KV cache \d+ MiB", line)
    assert fit.shortage(Bundle.open(shared_bundle), 100) is None
    assert fit.shortage(Bundle.open(shared_bundle), None) is None
    assert load(shared_bundle, threads=1).session.max_context == 100
    with pytest.raises(HRMEdgeError, match="--max-context 100 would fit"):
        load(shared_bundle, threads=1, max_context=200, strict=True)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(HRMEdgeError, match="free some memory"):
        load(shared_bundle, threads=1, strict=True)
    big = replace(manifest, max_seq_len=10**9)
    assert fit.largest_context(big, fit.need(big, 12345).total) == 12345
    assert fit.largest_context(big, 0) == 0


def test_the_header_is_readable(saved: Path) -> None:
    header = json.loads(saved.read_bytes().split(b"\n", 1)[0])
    assert header["version"] == 3 and header["prefix"][0] == 6

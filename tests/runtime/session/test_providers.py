"""Execution providers: the names that are taken, the ones that are refused, and KV on a device."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import load
from hrm_edge.runtime.session import kv_cache, prompt_cache, providers
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import open_session

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.mark.parametrize("verb", ["generate", "chat", "bench", "serve"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(
            "cuda",
            ["provider cuda is not installed", "has ", "cpu", "'onnxruntime-gpu[cuda,cudnn]=="],
            marks=pytest.mark.skipif(HAS_CUDA, reason="it is installed here"),
        ),
        ("coda", ["provider is 'coda', unknown to onnxruntime", "cpu"]),
    ],
)
def test_what_is_not_installed_is_refused_in_one_line(
    run_cli: Callable[..., tuple[int, str, str]],
    shared_bundle: Path,
    verb: str,
    name: str,
    words: list[str],
) -> None:
    more = {"generate": ["Hi"], "serve": ["--port", 0], "bench": ["-p", 8, "-n", 8]}
    code, _, err = run_cli(verb, shared_bundle, *more.get(verb, ()), "--provider", name)
    assert code == 1 and len(err.splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.mark.skipif(
    "AzureExecutionProvider" not in ort.get_available_providers(), reason="not in this onnxruntime"
)
def test_a_provider_that_takes_nothing_is_refused(shared_bundle: Path) -> None:
    """The wheel's second provider runs remote models alone; ONNX Runtime would use the CPU."""
    with pytest.raises(HRMEdgeError, match="provider azure takes no part of this bundle"):
        load(shared_bundle, provider="azure")


def test_cpu_is_the_default_and_can_be_named(shared_bundle: Path) -> None:
    ids = list(range(20, 40))
    usual, named = load(shared_bundle, threads=1), load(shared_bundle, threads=1, provider="cpu")
    np.testing.assert_array_equal(usual.session.prefill(ids), named.session.prefill(ids))


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, False),
        ({"dtype": "fp16", "kv_bits": 4}, True),
        ({"dtype": "fp16", "kv_bits": 8}, True),
        ({"dtype": "fp16", "kv_bits": 16}, True),
    ],
)
def test_cuda_takes_only_what_its_attention_kernel_does(
    shared_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    fits: bool,
) -> None:
    manifest = export(shared_checkpoint, tmp_path / "bundle", **options).manifest
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    if fits:
        providers.check("cuda", manifest)
    else:
        with pytest.raises(HRMEdgeError, match="export with --dtype fp16"):
            providers.check("cuda", manifest)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(kv_bits=4),
        Recipe(kv_bits=4, kv_h_bits=8),
        Recipe(dtype="fp16", kv_bits=16),
    ],
)
def test_buffers_on_a_device_hold_what_those_of_the_host_do(
    shared_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    """The device is the CPU here: all but the memory itself is as with another one."""
    bundle = export(shared_checkpoint, tmp_path / "bundle", recipe=recipe)
    host = open_session(bundle, Loading(threads=1, max_context=64))
    device = on_device(monkeypatch, bundle)
    ids = list(range(20, 50))
    for session in (host, device):
        session.prefill(ids)
        session.decode([60, 61])
        session.rewind(1)
    np.testing.assert_array_equal(host.decode([62, 63]), device.decode([62, 63]))
    for whole, part in zip(host.prefix_state(), device.prefix_state(), strict=True):
        np.testing.assert_array_equal(whole, part)


def test_a_prefix_moves_from_file_to_device(
    shared_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, ids = Bundle.open(shared_bundle), list(range(20, 50))
    host = open_session(bundle, Loading(threads=1, max_context=64))
    host.prefill(ids)
    prompt_cache.save(tmp_path / "prefix", host, bundle.manifest)
    device = on_device(monkeypatch, bundle)
    prompt_cache.restore(tmp_path / "prefix", device, bundle.manifest)
    np.testing.assert_array_equal(host.decode([60]), device.decode([60]))


def on_device(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> OnnxSession:
    """A session whose buffers are OrtValues of the device "cpu"."""

    def buffers(layouts: Sequence[kv_cache.Layout]) -> kv_cache.KVBuffers:
        return kv_cache.DeviceBuffers(layouts, "cpu")

    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "HostBuffers", buffers)
        return OnnxSession(bundle.path, bundle.manifest, 64, Loading(threads=1))

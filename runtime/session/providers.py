"""Which of ONNX Runtime's execution providers runs a bundle: named, found, and held to it.

A provider goes by its short name: cuda is CUDAExecutionProvider. ONNX Runtime itself falls back to
the CPU without a word where a provider cannot start or takes no node; here that is an error.
"""

import importlib.util

import onnxruntime as ort

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError

from .loading import CPU

_SUFFIX = "ExecutionProvider"
_RECORD = "session.record_ep_graph_assignment_info"
_PACKAGES = {"cuda": "onnxruntime-gpu[cuda,cudnn]"}  # on PyPI; takes onnxruntime's place
_DEVICES = {"cuda": "cuda"}  # where a provider keeps its tensors, as OrtValue calls it; else "cpu"


def device(name: str) -> str:
    """The device whose memory the provider `name` works in."""
    return _DEVICES.get(name, CPU)


def check(name: str, manifest: Manifest) -> None:
    """Raise HRMEdgeError if the provider `name` is not installed, or cannot run such a bundle."""
    installed = _short(ort.get_available_providers())
    if name not in installed:
        have = f"onnxruntime {ort.__version__} here has {', '.join(installed)}"
        if name not in _short(ort.get_all_providers()):
            raise HRMEdgeError(f"provider is {name!r}, unknown to onnxruntime; {have}")
        raise HRMEdgeError(f"provider {name} is not installed: {have}{_package(name)}")
    if name == "cuda":
        _check_cuda(manifest)


def _check_cuda(manifest: Manifest) -> None:
    """The limit of GroupQueryAttention's CUDA kernels in ONNX Runtime 1.31: activations of 16 bits.

    With those, caches of 16, 8 and 4 bits; a bundle of float16 has no other.
    """
    if manifest.quantization.dtype != "float16":
        raise HRMEdgeError(
            f"this bundle computes in {manifest.quantization.dtype}, for which CUDA has no "
            "attention kernel; export with --dtype fp16"
        )


def open_graph(path: str, options: ort.SessionOptions, name: str) -> ort.InferenceSession:
    """The graph at `path` on the provider `name`, what that does not take on the CPU.

    Raises HRMEdgeError if the provider cannot start, or takes nothing; else as ONNX Runtime does.
    """
    if name == CPU:
        return ort.InferenceSession(path, options, providers=[_full(CPU)])
    options.add_session_config_entry(_RECORD, "1")
    if name == "cuda" and importlib.util.find_spec("nvidia"):
        ort.preload_dlls()  # CUDA and cuDNN as pip installs them
    session = ort.InferenceSession(path, options, providers=[_full(name), _full(CPU)])
    if session.get_providers()[0] != _full(name):
        raise HRMEdgeError(
            f"provider {name} is installed but cannot start: its device, driver or libraries are "
            f"missing (ONNX Runtime's message is above){_package(name)}"
        )
    if all(part.ep_name == _full(CPU) for part in session.get_provider_graph_assignment_info()):
        raise HRMEdgeError(f"provider {name} takes no part of this bundle; use --provider cpu")
    return session


def _package(name: str) -> str:
    """How to come by a provider and its libraries, where PyPI has them."""
    if name not in _PACKAGES:
        return ""
    package = f"'{_PACKAGES[name]}=={ort.__version__}'"
    return f"; it comes with pip uninstall onnxruntime, then pip install {package}"


def _full(name: str) -> str:
    known = ort.get_all_providers()
    return known[_short(known).index(name)]


def _short(names: list[str]) -> list[str]:
    return [name.removesuffix(_SUFFIX).lower() for name in names]

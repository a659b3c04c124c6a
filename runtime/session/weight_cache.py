"""A copy of a bundle's graph that holds the weights as this machine's kernels pack them.

ONNX Runtime packs weights when it loads a model, into memory that the system cannot take back.
Packed weights that lie in a file are mapped instead: their pages can be dropped and read again.
The copy is made on the device, once, and named by all that it depends on: the bundle's files, the
processor and its features, and ONNX Runtime's version. It takes about twice the bundle's size.
The files are hashed before a copy is made, and again when their sizes or times have changed.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import disk_full, scratch_for, sha256, writing
from hrm_edge.names import LOGITS, ONNX_DATA, ONNX_MODEL
from hrm_edge.numerics import ort_dtype

FORMAT = 1
SEAL, CHECKED = "sizes.json", "checked.json"
SOURCES = (ONNX_MODEL, ONNX_DATA)
# Smaller tensors stay inside model.onnx and are packed at load. ONNX Runtime 1.31.1 aligns only
# tensors above 1 MiB in the file, and packed weights that are not aligned come out as NaN.
LEAST_BYTES = (1 << 20) + 1

Options = Callable[[], ort.SessionOptions]


def packed_graph(model: Path, manifest: Manifest, directory: Path, options: Options) -> Path:
    """The packed copy of `model` in `directory`, made if it is not there in full size.

    `options` gives the session options to load with. Raises HRMEdgeError if the copy cannot be
    made, or does not give the very logits of `model`.
    """
    entry = directory / key(manifest)
    if not _whole(entry, verify=False):
        _check_content(model.parent, manifest)
        with writing(entry):
            directory.mkdir(parents=True, exist_ok=True)
            with scratch_for(entry) as scratch:
                partial = scratch / "made"
                partial.mkdir()
                _make(model, partial, options)
                _install(partial, entry, scratch / "old")
                _remember(model.parent, entry)
    elif not _remembered(model.parent, entry):
        _check_content(model.parent, manifest)
        with writing(entry):
            _remember(model.parent, entry)
    return entry / ONNX_MODEL


def _check_content(bundle: Path, manifest: Manifest) -> None:
    """Raise HRMEdgeError if the bundle's files are not those whose hashes name the copy.

    A manifest alone proves nothing: it may stand beside other weights.
    """
    for name in SOURCES:
        if sha256(bundle / name) != manifest.files[name].sha256:
            raise HRMEdgeError(
                f"{bundle / name}: its content differs from what was exported; copy or export the "
                "bundle again, or load it without a weight cache"
            )


def _remembered(bundle: Path, entry: Path) -> bool:
    """Whether the bundle's files have the sizes and times with which they were last hashed."""
    try:
        known = json.loads((entry / CHECKED).read_text())
        return known[str(bundle.resolve())] == _stamps(bundle)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _remember(bundle: Path, entry: Path) -> None:
    """Note that the content of the bundle's files was checked as they are now."""
    stamps = {str(bundle.resolve()): _stamps(bundle)}
    try:
        known = json.loads((entry / CHECKED).read_text())
    except (OSError, ValueError, RecursionError):
        known = {}
    known = known if isinstance(known, dict) else {}
    partial = entry / f"{CHECKED}.{os.getpid()}"
    partial.write_text(json.dumps(known | stamps))
    partial.replace(entry / CHECKED)


def _stamps(bundle: Path) -> dict[str, list[int]]:
    found = {name: (bundle / name).stat() for name in SOURCES}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def drop_damaged(manifest: Manifest, directory: Path) -> None:
    """Remove the copy whose content is not what was made, so that it is made anew."""
    entry = directory / key(manifest)
    if entry.exists() and not _whole(entry, verify=True):
        with writing(entry):
            shutil.rmtree(entry)


def key(manifest: Manifest) -> str:
    """The name of a copy: a digest of what its content depends on."""
    hashes = {name: file.sha256 for name, file in manifest.files.items() if "onnx" in name}
    parts = [FORMAT, sorted(hashes.items()), ort.__version__, *_processor()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _processor() -> list[str]:
    """What tells processors apart whose kernels pack differently."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")
    found = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return found
    return found + sorted({line for line in lines if line.startswith(wanted)})


def _whole(entry: Path, verify: bool) -> bool:
    """Whether each file has the size, and with `verify` the hash, that it was made with."""
    try:
        seal = json.loads((entry / SEAL).read_text())
        return all(
            (entry / name).stat().st_size == size and (not verify or sha256(entry / name) == digest)
            for name, (size, digest) in seal.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _make(model: Path, out: Path, options: Options) -> None:
    making = options()
    making.optimized_model_filepath = str(out / ONNX_MODEL)
    for name, value in (
        ("optimized_model_external_initializers_file_name", ONNX_DATA),
        ("optimized_model_external_initializers_min_size_in_bytes", str(LEAST_BYTES)),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        making.add_session_config_entry(f"session.{name}", value)
    expected = _written(model, out, making)
    if not np.array_equal(expected, _logits(str(out / ONNX_MODEL), options())):
        raise HRMEdgeError(
            f"{model}: its packed copy computes something else with onnxruntime "
            f"{ort.__version__}; load it without a weight cache"
        )
    files = [file for file in out.iterdir() if file.is_file()]
    for file in files:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    seal = {file.name: [file.stat().st_size, sha256(file)] for file in files}
    (out / SEAL).write_text(json.dumps(seal))


def _written(model: Path, out: Path, making: ort.SessionOptions) -> np.ndarray:
    """The logits of `model`, whose packed copy is in `out` then. Raises OSError."""
    try:
        return _logits(str(model), making)
    except Exception as error:  # onnxruntime's exceptions share no public base
        if disk_full(out):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        reason = str(error).splitlines()[0]
        raise OSError(errno.EIO, f"ONNX Runtime: {reason}") from error


def _logits(path: str, options: ort.SessionOptions) -> np.ndarray:
    """Logits of a prefix of three tokens."""
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in value.shape]
        feeds[value.name] = np.ones([1, *shape[1:]], ort_dtype(value.type))
    return np.asarray(session.run([LOGITS], feeds)[0])


def _install(partial: Path, entry: Path, old: Path) -> None:
    """Put what was made where it belongs, in place of a damaged copy; another's whole one stays."""
    if entry.exists() and not _whole(entry, verify=True):
        entry.rename(old)
    try:
        partial.rename(entry)
    except OSError:
        if not _whole(entry, verify=False):
            raise

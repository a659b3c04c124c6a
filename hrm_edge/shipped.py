"""The models that ship inside, by name: bundles, and checkpoints of which bundles are made once.

A bundle that was made lies in the user's cache directory, in a folder named by a digest of the
weights, our version, and the revision of the graph.
"""

import hashlib
import importlib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from hrm_edge.files import user_cache
from hrm_edge.names import MANIFEST, WEIGHTS
from hrm_edge.progress import status

REVISION = b"rows"  # another one where bundles that were made before lack something
MODELS = {"hrm-tiny": "hrm_tiny", "hrm-g2p": "hrm-g2p"}  # name -> directory in data/


def inside(name: str | Path) -> Path | None:
    """The directory of the model `name`; None if no such one ships, or a file has that name."""
    if str(name) not in MODELS or Path(name).exists():
        return None
    return Path(str(files("hrm_edge") / "data" / MODELS[str(name)]))


def checkpoint(name: str | Path) -> Path | None:
    """The checkpoint of the model `name`; None if none of that name ships."""
    found = inside(name)
    return None if found is None or (found / MANIFEST).is_file() else found


def bundle(name: str | Path) -> Path:
    """The bundle of the shipped model `name`, made if it is not there; else `name` as a path.

    Raises HRMEdgeError, or ModuleNotFoundError where the export's libraries are not installed.
    """
    source = inside(name)
    if source is None:
        return Path(name)
    if (source / MANIFEST).is_file():
        return source
    made_of = (source / WEIGHTS).read_bytes() + version("hrm-edge").encode() + REVISION
    path = directory() / hashlib.sha256(made_of).hexdigest()[:12] / str(name)
    if not (path / MANIFEST).is_file():
        with status(f"making the bundle of {name}, once"):
            importlib.import_module("hrm_edge.export").export(source, path, force=path.exists())
    return path


def bundles() -> list[Path]:
    """Those that were made, of whatever version."""
    return sorted(path.parent for path in directory().glob(f"*/*/{MANIFEST}"))


def directory() -> Path:
    """Where bundles of shipped models are kept."""
    return user_cache("bundles")

"""A prefix and its KV cache in a file, so that a long prompt need not be read twice.

Format 3: a line of JSON (what it belongs to, the prefix, a checksum), float32 logits of its last
token, then the cache: [heads, tokens, width] of each buffer in turn. The bundle's hashes, the
cache's layout and the checksum are compared before anything is taken over. What follows the prefix
is not kept: the next turn's prefix is read in both directions, so an answer's cache is of no use.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hrm_edge.bundle import Manifest
from hrm_edge.config import parse_json
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import replacing

from .protocol import Session

KIND, VERSION = "hrm-edge prefix", 3


def save(path: Path, session: Session, manifest: Manifest) -> None:
    """Write what `session` holds of its prefix to `path`, replacing it as a whole."""
    if not session.prefix:
        raise HRMEdgeError(f"{path}: there is no prompt to save yet")
    parts = session.prefix_state()
    header = {
        "kind": KIND,
        "version": VERSION,
        "bundle": _identity(manifest),
        "kv_share": session.kv_share,
        "prefix": session.prefix,
        "crc32": _checksum(parts),
    }
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for part in parts:
            file.write(part.data)


def restore(path: Path, session: Session, manifest: Manifest) -> None:
    """Put a saved prefix into `session`. Raises HRMEdgeError if it is damaged or another's."""
    try:
        with path.open("rb") as file:
            header = _header(path, file, manifest, session.kv_share)
            logits = np.frombuffer(file.read(4 * manifest.model.vocab_size), np.float32)
            cache = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise _damaged(path) from None
    if _checksum((logits, cache)) != header["crc32"]:
        raise _damaged(path)
    prefix, size = header["prefix"], len(logits)
    if size != manifest.model.vocab_size or not np.isfinite(logits).all():
        raise _damaged(path)
    if len(prefix) >= session.max_context:
        raise HRMEdgeError(
            f"{path}: holds {len(prefix)} tokens, max_context is {session.max_context}"
        )
    try:
        session.set_prefix_state(prefix, logits, cache)
    except ValueError:
        raise _damaged(path) from None


def _header(path: Path, file: BinaryIO, manifest: Manifest, kv_share: str) -> dict:
    try:
        header = parse_json(file.readline(1 << 24).decode(), str(path))
        if header["kind"] != KIND:
            raise KeyError("kind")
    except (HRMEdgeError, UnicodeDecodeError, KeyError, TypeError):
        raise HRMEdgeError(f"{path}: not a saved prefix; name another file") from None
    if header.get("version") != VERSION:
        raise HRMEdgeError(
            f"{path}: of version {header.get('version')!r}, not {VERSION}; remove it"
        )
    if header.get("kv_share", "none") != kv_share:
        raise HRMEdgeError(
            f"{path}: made with --kv-share {header.get('kv_share', 'none')}, not {kv_share}; load "
            "alike, remove it or name another file"
        )
    if header.get("bundle") != _identity(manifest):
        raise HRMEdgeError(f"{path}: made with another bundle; remove it or name another file")
    prefix, tokens = header.get("prefix"), range(manifest.model.vocab_size)
    if not isinstance(prefix, list) or not prefix or "crc32" not in header:
        raise _damaged(path)
    if not all(type(i) is int and i in tokens for i in prefix):
        raise _damaged(path)
    return header


def _damaged(path: Path) -> HRMEdgeError:
    return HRMEdgeError(f"{path}: damaged or truncated; remove it")


def _identity(manifest: Manifest) -> str:
    """A digest of everything a cache depends on: graph, weights and cache layout."""
    hashes = [manifest.files[name].sha256 for name in sorted(manifest.files) if "onnx" in name]
    return hashlib.sha256("\n".join([*hashes, repr(manifest.kv_cache)]).encode()).hexdigest()


def _checksum(parts: Sequence[np.ndarray]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part.data, value)
    return value

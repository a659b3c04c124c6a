"""Directories that appear whole or not at all, and hashes of files."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hrm_edge.errors import HRMEdgeError

MARKERS = ("manifest.json", "config.json")  # a directory that --force may replace holds one


@contextlib.contextmanager
def new_directory(out: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `out` that becomes `out` when the block ends without an error.

    On any error, Ctrl-C included, the temporary directory is removed and `out` is as it was.
    Raises HRMEdgeError if `out` exists (without `force`), holds neither bundle nor checkpoint
    (with `force`), or cannot be written.
    """
    _check_replaceable(out, force)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        with writing(out):
            yield partial
            _open_up(partial)
            _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an OSError inside the block into one line that names `out` and the cause."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            hint = "the disk is full; free some space or write elsewhere"
            raise HRMEdgeError(f"{out}: {hint}; nothing was written") from error
        cause = error.strerror or str(error)
        raise HRMEdgeError(f"{out}: cannot be written ({cause}); nothing was written") from error


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces of 1 MiB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_replaceable(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise HRMEdgeError(f"{out} exists; choose another name, or replace it with --force")
    if not out.is_dir():
        raise HRMEdgeError(f"{out} is not a directory; choose another name")
    if any(out.iterdir()) and not any((out / marker).is_file() for marker in MARKERS):
        raise HRMEdgeError(
            f"{out} holds other files; --force replaces bundles and checkpoints only"
        )


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(old / "was")
    try:
        partial.rename(out)
    except BaseException:
        (old / "was").rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _open_up(directory: Path) -> None:
    """Give the directory and its files the permissions that the umask says; some writers don't."""
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for file in directory.iterdir():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)

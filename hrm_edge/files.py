"""Directories that appear whole or not at all, and hashes of files."""

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import CONFIG, MANIFEST

MARKERS = (MANIFEST, CONFIG)  # a directory that --force may replace holds one


@contextlib.contextmanager
def new_directory(out: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `out` that becomes `out` when the block ends without an error.

    On any error, Ctrl-C included, the temporary directory is removed and `out` is as it was.
    Raises HRMEdgeError if `out` exists (without `force`), holds neither bundle nor checkpoint
    (with `force`), or cannot be written; so too if that comes about only while the block runs, and
    then says where the finished directory lies.
    """
    _check_replaceable(out, force)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        with writing(out):
            yield partial
            _open_up(partial)
            _install(partial, out, force)
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
    if not _is_ours(out):
        raise HRMEdgeError(
            f"{out} holds other files; --force replaces bundles and checkpoints only"
        )


def _is_ours(directory: Path) -> bool:
    """Whether it is a bundle, a checkpoint or empty: what may be replaced if that is asked for."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    empty = next(directory.iterdir(), None) is None
    return empty or any((directory / marker).is_file() for marker in MARKERS)


def _install(partial: Path, out: Path, force: bool) -> None:
    """Give the finished directory its name; what took that name meanwhile is never removed.

    Raises HRMEdgeError, saying where the finished directory lies, if the name is taken by what may
    not be replaced.
    """
    if force and out.exists():
        _exchange(partial, out)
        return
    try:
        _claim(partial, out)
    except OSError as error:
        if not out.exists() and not out.is_symlink():
            raise
        raise _taken(partial, out) from error


def _claim(partial: Path, out: Path) -> None:
    """Rename to a name that nobody has; OSError if somebody does.

    rename(2) replaces a directory that is empty, whosever it is, so the name is made first.
    """
    if sys.platform != "win32":
        out.mkdir()
    partial.rename(out)


def _exchange(partial: Path, out: Path) -> None:
    """Put `partial` in the place of a bundle or checkpoint, which is looked at once it is aside."""
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    was = old / "was"
    out.rename(was)
    try:
        if not _is_ours(was):
            raise _taken(partial, out)
        partial.rename(out)
    except BaseException:
        was.rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _taken(partial: Path, out: Path) -> HRMEdgeError:
    """The error for a name that was taken while `partial` was made, which gets another one."""
    for number in itertools.count(2):
        spare = out.with_name(f"{out.name}-{number}")
        try:
            _claim(partial, spare)
        except FileExistsError:
            continue
        return HRMEdgeError(
            f"{out} was made by something else meanwhile and is left as it is; what was finished "
            f"here is {spare}"
        )
    raise AssertionError("there is always a further number")


def _open_up(directory: Path) -> None:
    """Give the directory and its files the permissions that the umask says; some writers don't."""
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for file in directory.iterdir():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)

"""Files and directories that appear whole or not at all, and hashes of files.

What is being made lies beside its place as `.NAME.*.partial`, locked by the process that makes it.
One that nobody holds was left by a process that was killed, and goes when the same is made again.
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import CONFIG, MANIFEST

MARKERS = (MANIFEST, CONFIG)  # a directory that --force may replace holds one
PARTIAL = ".partial"
NOREPLACE, EXCHANGE = 1, 2  # flags of renameat2(2)


@contextlib.contextmanager
def new_directory(out: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `out` when the block ends without an error.

    On any error, Ctrl-C included, the temporary directory is removed and `out` is as it was.
    Raises HRMEdgeError if `out` exists (without `force`), holds neither bundle nor checkpoint
    (with `force`), or cannot be written; so too if that comes about only while the block runs, and
    then says where the finished directory lies.
    """
    _check_replaceable(out, force)
    with writing(out, "nothing was written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_for(out) as scratch:  # what is replaced goes in here, under the same lock
            partial = scratch / "made"
            partial.mkdir()
            yield partial
            _open_up(partial)
            _install(partial, out, force)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which becomes `path` when the block ends without an error.

    On any error `path` is as it was. Raises HRMEdgeError if it cannot be written.
    """
    kept = "what it held is untouched" if path.exists() else "nothing was written"
    with writing(path, kept), scratch_for(path) as scratch:
        yield scratch / path.name
        (scratch / path.name).replace(path)


@contextlib.contextmanager
def writing(out: Path, then: str | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into one line: `out`, the cause, and how things stand."""
    try:
        yield
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        if error.errno == errno.ENOSPC or (error.errno is None and disk_full(out)):
            cause = "the disk is full; free some space or write elsewhere"
        raise HRMEdgeError(f"{out}: {cause}" + (f"; {then}" if then else "")) from error


def disk_full(path: Path, room: int = 1 << 20) -> bool:
    """Whether less than `room` bytes are free where `path` is to lie: libraries do not always say
    why they could not write.
    """
    there = next((p for p in (path, *path.parents) if p.exists()), None)
    return there is not None and shutil.disk_usage(there).free < room


@contextlib.contextmanager
def scratch_for(out: Path) -> Iterator[Path]:
    """Yield a new directory beside `out` that is gone after the block. Raises OSError.

    What a killed process was making of `out` is gone before it.
    """
    _clear_abandoned(out)
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=PARTIAL, dir=out.parent))
        try:
            held = _lock(path)
        except (BlockingIOError, FileNotFoundError):  # another process takes it for abandoned
            continue
        if path.exists():
            break
        _unlock(held)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _unlock(held)


def _clear_abandoned(out: Path) -> None:
    """Remove what processes that no longer live were making of `out`."""
    for path in out.parent.iterdir():
        if path.name.startswith(f".{out.name}.") and path.name.endswith(PARTIAL):
            with contextlib.suppress(OSError):
                held = _lock(path)
                if held is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    _unlock(held)


def _lock(directory: Path) -> int | None:
    """A descriptor that locks `directory` until it is closed; None where there are no locks.

    Raises BlockingIOError if another process has it.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise
    except OSError:  # such as a network's file system
        os.close(held)
        return None
    return held


def locked(file: BinaryIO) -> bool:
    """Hold an open file against other processes until it is closed; False if one of them does."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # such as a network's file system
        return True
    return True


def _unlock(held: int | None) -> None:
    if held is not None:
        os.close(held)


@contextlib.contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold `directory` against others that do the same. Raises HRMEdgeError if a process does."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            held = _lock(directory)
        except BlockingIOError:
            told = f"{directory}: another process is writing there; choose another name"
            raise HRMEdgeError(told) from None
    try:
        yield
    finally:
        _unlock(held)


def user_cache(name: str) -> Path:
    """The directory `name` below our own in the user's cache directory; HRM_EDGE_CACHE moves it."""
    if given := os.environ.get("HRM_EDGE_CACHE"):
        return Path(given) / name
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hrm-edge" / name


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

    rename(2) replaces a directory that is empty, whosever it is, so where the system has no better
    call the name is made first.
    """
    if _renamed(partial, out, NOREPLACE):
        return
    if sys.platform != "win32":
        out.mkdir()
    partial.rename(out)


def _exchange(partial: Path, out: Path) -> None:
    """Put `partial` in the place of a bundle or checkpoint, which is looked at once it is aside.

    At no moment is there neither, where the system can exchange two names.
    """
    if _renamed(partial, out, EXCHANGE):
        if not _is_ours(partial):
            _renamed(partial, out, EXCHANGE)
            raise _taken(partial, out)
        return  # what was there lies in `partial`, and goes with it
    was = partial.with_name(f"{partial.name}-was")
    out.rename(was)
    try:
        if not _is_ours(was):
            raise _taken(partial, out)
        partial.rename(out)
    except BaseException:
        was.rename(out)
        raise
    shutil.rmtree(was, ignore_errors=True)


def _renamed(old: Path, new: Path, flag: int) -> bool:
    """renameat2(2); False where system or file system has no such call. Raises OSError."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here = -100  # AT_FDCWD
    if call is None or call(here, os.fsencode(old), here, os.fsencode(new), flag) == 0:
        return call is not None
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(new))


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

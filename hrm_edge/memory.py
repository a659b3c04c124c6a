"""What this process and this machine hold in memory, in bytes; None where the system won't say.

Anonymous memory is what gets a process killed on a phone or board; file-backed pages of mapped
weights can be dropped and read again.
"""

import ctypes
import sys
from pathlib import Path


def anonymous() -> int | None:
    """Anonymous memory of this process (heap, KV cache, packed weights)."""
    return _kib(Path("/proc/self/smaps_rollup"), "Anonymous:")


def anonymous_roughly() -> int | None:
    """`anonymous` to within a megabyte, in a fiftieth of the time: for the figures of an answer."""
    return _kib(Path("/proc/self/status"), "RssAnon:")


def huge() -> int | None:
    """How much of it lies in huge pages."""
    return _kib(Path("/proc/self/smaps_rollup"), "AnonHugePages:")


def peak() -> int | None:
    """The most that was ever resident in this process, mapped files included."""
    held = _kib(Path("/proc/self/status"), "VmHWM:")
    if held is None and sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held


def available() -> int | None:
    """What a process can still allocate: the system's estimate, or less where a cgroup says so."""
    system = _kib(Path("/proc/meminfo"), "MemAvailable:")
    group = _cgroup_room(Path("/sys/fs/cgroup"))
    known = [room for room in (system, group) if room is not None]
    return min(known) if known else None


def trim() -> None:
    """Give the system back what the C library's allocator holds free, where it can (glibc)."""
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)


def _kib(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def _cgroup_room(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None

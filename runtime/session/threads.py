"""How many threads a model gets by default: one for each physical performance core allowed to us.

Reads Linux's /sys; elsewhere the engine chooses.
"""

import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
INTEL_PERFORMANCE = Path("/sys/devices/cpu_core/cpus")  # hybrid processors list theirs here
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int | None:
    """The number of threads to use, or None where the system does not say."""
    if not hasattr(os, "sched_getaffinity") or not (CPUS / "cpu0" / "topology").is_dir():
        return None
    fast = _performance(sorted(os.sched_getaffinity(0)))
    cores = {_read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in fast}
    return max(1, min(len(cores), _quota(QUOTA) or len(cores)))


def _performance(cpus: list[int]) -> list[int]:
    """Of `cpus` the fast ones: Intel's P cores, or Arm's of more than half the best capacity."""
    listed = _parse(_read(INTEL_PERFORMANCE))
    capacities = {cpu: int(_read(CPUS / f"cpu{cpu}/cpu_capacity") or 1024) for cpu in cpus}
    best = max(capacities.values(), default=1024)
    fast = [cpu for cpu in cpus if 2 * capacities[cpu] > best]
    return [cpu for cpu in fast if cpu in listed] or fast


def _quota(path: Path) -> int | None:
    """Whole processors that a container may use; None without a limit."""
    quota, _, period = _read(path).partition(" ")
    return max(1, int(quota) // int(period)) if quota.isdigit() and period.isdigit() else None


def _parse(text: str) -> set[int]:
    """The numbers of a list such as "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

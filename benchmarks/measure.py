"""What is measured of every runtime alike: load, prefill and decode times, memory, energy."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

POWERCAP = Path("/sys/class/powercap")  # Linux: RAPL counters of Intel and AMD processors


class Runtime(Protocol):
    """The part of hrm_edge.runtime.session.protocol.Session that every runtime can offer."""

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start anew with `ids`; logits [V] of the last one."""
        ...

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits of the last one at least."""
        ...

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens."""
        ...


@dataclass(frozen=True)
class Memory:
    """Of this process, in bytes."""

    anonymous: int
    resident: int
    peak: int  # highest resident size so far, mapped file pages included

    @classmethod
    def now(cls) -> "Memory":
        """Read /proc/self/status."""
        lines = Path("/proc/self/status").read_text().splitlines()
        kib = {
            k: int(v.split()[0]) for k, v in (s.split(":", 1) for s in lines) if v.endswith("kB")
        }
        return cls(kib["RssAnon"] << 10, kib["VmRSS"] << 10, kib["VmHWM"] << 10)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of single calls, in the order they ran."""

    depth: int  # tokens in the context before the call
    tokens: int  # tokens a call
    ms: tuple[float, ...]
    joules: float | None = None  # of all calls together, where the machine tells

    @property
    def median_ms(self) -> float:
        """Median milliseconds of a call."""
        return statistics.median(self.ms)


@dataclass(frozen=True)
class Report:
    """What `measure` found."""

    load_s: float
    prefill: tuple[Timing, ...]
    decode: tuple[Timing, ...]
    after_load: Memory
    after_run: Memory

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all fields, and the median and tokens per second of each timing."""
        raw = asdict(self)
        for kind in ("prefill", "decode"):
            for timing, row in zip(getattr(self, kind), raw[kind], strict=True):
                row["median_ms"] = timing.median_ms
                row["tokens_per_s"] = 1000 * timing.tokens / timing.median_ms
        return raw


def measure(open_it: Callable[[int], Runtime], depths: Sequence[int], decode: int) -> Report:
    """Time a prefill of each of `depths` tokens, and `decode` single tokens after each.

    `open_it` loads the model with room for as many tokens as it is given. At depth 0 the context
    is one token, whose prefill is not reported. Two tokens are decoded unmeasured before a series.
    """
    longest = max(depths) + decode + 3
    started = time.perf_counter()
    session = open_it(longest)
    load_s, after_load = time.perf_counter() - started, Memory.now()
    ids = [14 + i * 7919 % 250 for i in range(longest)]  # any vocabulary has these
    session.prefill(ids[:2])
    prefills, decodes = [], []
    for depth in depths:
        prefill = _timed(depth, [lambda n=depth: session.prefill(ids[: max(n, 1)])], depth)
        prefills += [prefill] if depth else []
        session.decode(ids[:1])
        session.decode(ids[:1])
        session.rewind(2)
        steps = [lambda token=token: session.decode([token]) for token in ids[:decode]]
        decodes.append(_timed(depth, steps, 1))
    return Report(load_s, tuple(prefills), tuple(decodes), after_load, Memory.now())


def energy_counters(folder: Path = POWERCAP) -> list[tuple[int, int]]:
    """Microjoules drawn by each processor package so far, and where its counter wraps around.

    Empty where the machine does not tell: virtual machines, and kernels that let only root read.
    """
    found = []
    for package in sorted(folder.glob("intel-rapl:[0-9]")):
        try:
            drawn, wrap = package / "energy_uj", package / "max_energy_range_uj"
            found.append((int(drawn.read_text()), int(wrap.read_text())))
        except OSError:
            return []
    return found


def joules(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> float | None:
    """Energy between two readings of `energy_counters`."""
    if not before or len(before) != len(after):
        return None
    return sum((b - a) % wrap for (a, wrap), (b, _) in zip(before, after, strict=True)) / 1e6


def _timed(depth: int, calls: Sequence[Callable[[], object]], tokens: int) -> Timing:
    times: list[float] = []
    before = energy_counters()
    for call in calls:
        with clock(times):
            call()
    return Timing(depth, tokens, tuple(times), joules(before, energy_counters()))


@contextmanager
def clock(times: list[float]) -> Iterator[None]:
    """Append the milliseconds that the block takes to `times`."""
    started = time.perf_counter()
    yield
    times.append(1000 * (time.perf_counter() - started))

"""How a bundle is to be loaded: one value from the command line down to the session."""

import os
from dataclasses import dataclass
from pathlib import Path

from hrm_edge.config import KV_SHARES
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import user_cache

CPU = "cpu"
MOST_ROWS = 64
MOST_THREADS = 64  # or the number of processors, where there are more


@dataclass(frozen=True)
class Loading:
    """Raises HRMEdgeError for a value out of range.

    threads: None leaves the choice to the engine (one per physical core). max_context: most tokens
    of prompt and answer together. verify: hash every file first. strict: refuse what by estimate
    will not fit into memory with its context full. draft: a smaller bundle with the same tokenizer
    that drafts tokens for this one, or "shallow": the model's own last L pass of each H cycle,
    which is the default where the graph can leave passes out. h_cycles: run only so many H cycles,
    at a loss of quality. l_cycles: run only so many L passes of each H cycle for an answer's
    tokens, at some loss of quality; all of them read the prompt. fast: take l_cycles and kv_share
    as the bundle's manifest recommends them, where they are not given. provider: what ONNX Runtime
    computes with, cpu, cuda or what else is installed. weight_cache: a directory to keep weights in
    as this machine packs them, for less memory. kv_share: which passes keep keys and values in one
    place, at some loss of quality; "none", "cycle" (the L passes of an H cycle) or "stack" (all L
    passes). rows: sequences that can be held at once, each with max_context tokens; None: as many
    as memory holds with all of their context, and as make calls worth their time here.
    """

    threads: int | None = None
    max_context: int | None = None
    verify: bool = False
    strict: bool = False
    draft: str | Path | None = None
    h_cycles: int | None = None
    provider: str = CPU
    weight_cache: Path | None = None
    kv_share: str = "none"
    l_cycles: tuple[int, ...] | None = None
    fast: bool = False
    rows: int | None = 1

    def __post_init__(self) -> None:
        most = max(MOST_THREADS, os.cpu_count() or 1)
        if self.threads is not None and not 1 <= self.threads <= most:
            raise HRMEdgeError(f"threads is {self.threads}, expected 1 to {most}", "threads")
        if self.rows is not None and not 1 <= self.rows <= MOST_ROWS:
            raise HRMEdgeError(
                f"rows (--parallel) is {self.rows}, expected 1 to {MOST_ROWS}", "rows"
            )
        if self.kv_share not in KV_SHARES:
            known = ", ".join(KV_SHARES)
            says = f"kv_share is {self.kv_share!r}, expected one of {known}"
            raise HRMEdgeError(says, "kv_share")
        for name in ("draft", "h_cycles"):  # drafts would not be exact, slots not all be written
            value = getattr(self, name)
            if self.kv_share != "none" and value is not None:
                says = f"kv_share is {self.kv_share} and {name} {value}; give one of them"
                raise HRMEdgeError(says, "kv_share")


def weight_cache_directory(choice: str) -> Path | None:
    """The directory that `--weight-cache` names: None for off, the user's cache for auto."""
    if choice == "off":
        return None
    if choice == "auto":
        return user_cache("weights")
    return Path(choice)

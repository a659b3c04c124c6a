"""What a weight cache does: anonymous memory, and the time to load, with and without it.

    python -m benchmarks.weight_cache BUNDLE --cache DIR

Each load runs in a process of its own, the first one with an empty cache. `cpu` is processor time,
which other work on the machine does not stretch. Prints a Markdown table; the last column is a
digest of the logits of a short prefix and three tokens after it.
"""

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path

CONTEXT = 64  # tokens, so that the KV cache hardly counts


def measure(bundle: Path, cache: Path | None) -> list[str]:
    """One load in this process, as cells of a row."""
    from hrm_edge import memory
    from hrm_edge.runtime import load

    started, used = time.perf_counter(), time.process_time()
    session = load(bundle, threads=1, max_context=CONTEXT, weight_cache=cache).session
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    loaded = memory.anonymous()
    logits = hashlib.sha256(session.prefill(list(range(20, 40))).tobytes())
    for ids in ([50], [51, 52]):
        logits.update(session.decode(ids).tobytes())
    sizes = [f"{(size or 0) / 2**20:.0f}" for size in (loaded, memory.anonymous(), memory.peak())]
    return [f"{seconds:.1f}", f"{cpu:.1f}", *sizes, logits.hexdigest()[:8]]


def main() -> None:
    """Run the three loads, or one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="an empty or new directory")
    parser.add_argument("--one", choices=["without", "with"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        cells = measure(options.bundle, options.cache if options.one == "with" else None)
        print(" | ".join(cells))
        return
    print("| load | s | cpu s | MiB anonymous | after answering | peak RSS | logits |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, one in (("without", "without"), ("making it", "with"), ("with it", "with")):
        command = [sys.executable, "-m", "benchmarks.weight_cache", str(options.bundle)]
        command += ["--cache", str(options.cache), "--one", one]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {name} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()

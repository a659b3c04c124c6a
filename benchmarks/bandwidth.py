"""How fast this machine reads memory: the limit of decoding, which reads every weight per token.

python -m benchmarks.bandwidth --threads 2
"""

import time
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np

BYTES = 512 << 20  # per thread; far beyond any cache


def read_bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes per second that `threads` threads read together, the best of `rounds`."""
    arrays = [np.ones(BYTES // 8, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return max(_round(pool, arrays) for _ in range(rounds))


def _round(pool: ThreadPoolExecutor, arrays: list[np.ndarray]) -> float:
    started = time.perf_counter()
    list(pool.map(np.max, arrays))  # vectorized, and numpy lets other threads run meanwhile
    return sum(a.nbytes for a in arrays) / (time.perf_counter() - started)


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Print the read bandwidth in GB/s."""
    print(f"{read_bandwidth(threads) / 1e9:.1f} GB/s, {threads} threads")


if __name__ == "__main__":
    main()

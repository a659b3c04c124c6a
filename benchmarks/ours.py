"""The same measurements as benchmarks.llamacpp, on a bundle of ours.

python -m benchmarks.ours BUNDLE --depth 0,1000 --prefill 256 --decode 16 --json
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks.llamacpp import Memory, Report, Timing, timed
from hrm_edge.bundle import Bundle
from hrm_edge.runtime.session import Session, open_session


def measure_session(
    open_it: Callable[[int], Session],
    depths: Sequence[int],
    prefill: int,
    decode: int,
    repeats: int,
) -> Report:
    """Time `decode` single tokens after each of `depths`, and `repeats` prefills of `prefill`.

    `open_it` loads the model with room for as many tokens as it is given.
    """
    longest = max(prefill, max(depths, default=0) + decode + 3)
    started = time.perf_counter()
    session = open_it(longest)
    load_s, after_load = time.perf_counter() - started, Memory.now()
    ids = [14 + i * 7919 % 250 for i in range(longest)]  # any vocabulary has these
    session.prefill(ids[:2])
    prompts = tuple(timed(lambda: session.prefill(ids[:prefill])) for _ in range(repeats))
    prefills = (Timing(0, prefill, prompts),) if prefill else ()
    decodes = tuple(_decode(session, ids, depth, decode) for depth in depths)
    return Report(load_s, prefills, decodes, after_load, Memory.now())


def _decode(session: Session, ids: list[int], depth: int, count: int) -> Timing:
    session.prefill(ids[: max(depth, 1)])
    session.decode(ids[:1])
    session.decode(ids[:1])
    session.rewind(2)
    times = (timed(lambda token=token: session.decode([token])) for token in ids[:count])
    return Timing(depth, 1, tuple(times))


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--depth", default="0", help="Context lengths to decode at, joined by commas.")
@click.option("--prefill", default=0, help="Prompt tokens to time; 0 times none.")
@click.option("--decode", default=16, help="Tokens to decode at each depth.")
@click.option("--repeats", default=1, help="Prefills to time.")
@click.option("--context", type=int, help="KV cache size in tokens; default: what is needed.")
@click.option("--threads", type=int, help="Default: one per physical core.")
def main(path: Path, depth: str, context: int | None, threads: int | None, **counts: int) -> None:
    """Measure the bundle PATH and print JSON."""
    bundle, depths = Bundle.open(path), [int(d) for d in depth.split(",")]
    report = measure_session(
        lambda longest: open_session(bundle, threads, context or longest), depths, **counts
    )
    print(json.dumps(report.to_dict(), indent=1))


if __name__ == "__main__":
    main()

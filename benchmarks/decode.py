"""What a token costs by plan and sharing, at several contexts, beside llama.cpp and the memory bus.

    python -m benchmarks.decode BUNDLE [--gguf MODEL.gguf] -o benchmarks/results/decode

loads the bundle twice, with slots of its own and shared by cycle, fills both caches with noise up
to each context, and decodes one token a call: every plan in turns, in blocks of one plan, since the
weights of a block stay in the processor's caches as far as they fit. `drafted` is a token that the
shallow passes draft, `4 at once` the call that verifies three of them. llama.cpp reads as long a
prompt and decodes likewise, in the same run. Needs an idle machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.bandwidth import read_bandwidth
from benchmarks.llamacpp import Llama
from benchmarks.peers import machine
from hrm_edge import memory
from hrm_edge.bundle import Bundle
from hrm_edge.cli_inspect import weight_bytes_per_token
from hrm_edge.runtime.bench import markdown_table
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import open_session

BLOCK = 4  # calls of a way before the next one's turn; the first of them is not counted
Times = dict[str, list[float]]  # a way -> milliseconds of every call


def filled(session: OnnxSession, tokens: int) -> None:
    """Make `session` one that has read a prompt of `tokens`."""
    ids = [20] * tokens
    _, cache = (session.prefill(ids[:1]), session.prefix_state()[1])
    noise = np.random.default_rng(0).integers(0, 256, cache.size * tokens, dtype=np.uint8)
    session.set_prefix_state(ids, np.zeros(1, np.float32), noise)


def ways(own: OnnxSession, shared: OnnxSession) -> dict[str, Callable[[], object]]:
    """What is timed, by name; afterwards the session is as it was."""
    model = own.manifest.model
    prefix, full = own.prefix, (model.L_cycles,) * model.H_cycles
    plans = [full, (2,) * model.H_cycles, (1,) * (model.H_cycles - 1) + (2,)]

    def decoded(session: OnnxSession, plan: tuple[int, ...], tokens: int) -> Callable[[], object]:
        def work() -> None:
            session.start(prefix, plan)
            session.decode([20] * tokens)

        return work

    def drafted() -> None:
        own.start(prefix)
        own.draft([20])

    found: dict[str, Callable[[], object]] = {}
    for plan in plans:
        name = ",".join(map(str, plan))
        found[f"plan {name}"] = decoded(own, plan, 1)
        found[f"plan {name}, slots by cycle"] = decoded(shared, plan, 1)
    return found | {"drafted": drafted, "4 at once": decoded(own, full, 4)}


def measure(work: dict[str, Callable[[], object]], rounds: int) -> Times:
    """Every way in turns, `rounds` blocks each."""
    times: Times = {name: [] for name in work}
    for _ in range(rounds):
        for name, once in work.items():
            for call in range(BLOCK):
                started = time.perf_counter()
                once()
                if call:
                    times[name].append(1000 * (time.perf_counter() - started))
    return times


def peer(gguf: Path, context: int, threads: int, calls: int) -> list[float]:
    """llama.cpp's milliseconds a token behind a prompt of `context`."""
    with Llama(gguf, context + calls + 8, threads) as llama:
        llama.prefill([20] * context, causal=True)
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            llama.decode([20])
            times.append(1000 * (time.perf_counter() - started))
    return times[2:]


def held(bundle: Bundle, kv_share: str, tokens: int, threads: int) -> int:
    """Anonymous bytes of a process that holds a session with that many tokens in its cache."""
    session = open_session(bundle, Loading(threads, tokens + 8, kv_share=kv_share))
    assert isinstance(session, OnnxSession)
    filled(session, tokens)
    session.decode([20])
    return memory.anonymous() or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="without ending")
    parser.add_argument("--contexts", default="8,512,2048")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    contexts = [int(n) for n in given.contexts.split(",")]
    bundle = Bundle.open(given.bundle)
    memories = {}
    for share in ("none", "cycle"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found = fresh.submit(held, bundle, share, contexts[-1], given.threads).result()
        memories[f"{share}, {contexts[-1]} tokens"] = found
    sessions = []
    for share in ("none", "cycle"):
        how = Loading(given.threads, contexts[-1] + 8, kv_share=share)
        session = open_session(bundle, how)
        assert isinstance(session, OnnxSession)
        sessions.append(session)
    every: dict[int, Times] = {}
    for context in contexts:
        for session in sessions:
            filled(session, context)
        every[context] = measure(ways(*sessions), given.rounds)
    del sessions, session
    if given.gguf:
        for context, times in every.items():
            times["llama.cpp"] = peer(given.gguf, context, given.threads, 3 * given.rounds + 2)
    limit = weight_bytes_per_token(bundle.manifest.model, bundle.manifest.quantization)
    bandwidth = read_bandwidth(given.threads)
    for times in every.values():
        times["reading all passes' weights"] = [1000 * limit / bandwidth]
    text = report(every, memories)
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    text += f"\n\n{facts}; {given.threads} threads, {given.rounds} rounds, medians; "
    text += f"{bandwidth / 1e9:.1f} GB/s read."
    given.out.with_suffix(".md").write_text(text + "\n")
    raw = {"ms": {str(n): times for n, times in every.items()}, "anonymous": memories}
    given.out.with_suffix(".json").write_text(json.dumps(raw) + "\n")
    print(text)


def report(every: dict[int, Times], memories: dict[str, int]) -> str:
    """Medians, and in brackets shares of the exact plan's."""
    head = ["ms a call", *(f"behind {context} tokens" for context in every)]
    exact = next(iter(next(iter(every.values()))))
    rows = []
    for name in next(iter(every.values())):
        cells = []
        for times in every.values():
            mine, base = (statistics.median(times[n]) for n in (name, exact))
            cells.append(f"{mine:.1f} ({mine / base:.2f})")
        rows.append([name, *cells])
    lines = [f"- slots {name}: {size / 2**20:,.0f} MiB" for name, size in memories.items()]
    anonymous = "Anonymous memory of a process with its cache full:\n\n" + "\n".join(lines)
    return f"{markdown_table(head, rows)}\n\n{anonymous}"


if __name__ == "__main__":
    main()

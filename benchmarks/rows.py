"""Several answers at once: tokens a second by rows, beside llama.cpp with as many sequences.

    python -m benchmarks.rows BUNDLE --gguf MODEL.gguf -o benchmarks/results/rows

Every answer has a prompt and greedy tokens of its own. `call` is a call with a token of each row;
`whole` is everything: as many prompts as rows, read one after the other, and their answers, all
at once. llama.cpp gets what its server makes of `-np ROWS` and as many clients: a batch with a
token of each sequence, every sequence with a cache of its own; it reads prompts causally. Both run
in turns in one process. Needs an idle machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llamacpp import Llama
from benchmarks.peers import machine
from hrm_edge import memory
from hrm_edge.runtime import Completion, Model, load
from hrm_edge.runtime.bench import markdown_table
from hrm_edge.runtime.decoding.rows import together
from hrm_edge.runtime.settings import Settings

Way = Callable[[int, Sequence[list[int]], int], tuple[list[float], float]]


def ours(model: Model) -> Way:
    """Answers of `model`: milliseconds of each call with all rows, and seconds of the whole."""
    sessions: Any = model.rows.sessions

    def run(rows: int, prompts: Sequence[list[int]], count: int) -> tuple[list[float], float]:
        calls = list[float]()
        tokens = [int(row.start(ids).argmax()) for row, ids in zip(sessions, prompts, strict=False)]
        for _ in range(count - 1):
            started = time.perf_counter()
            logits = sessions[0].decode_rows(sessions[:rows], tokens)
            tokens = logits.argmax(axis=1).tolist()
            calls.append(1000 * (time.perf_counter() - started))
        for row in sessions:
            row.prefix = []  # so that the whole reads its prompts
        settings = Settings(max_tokens=count, max_repeats=0, speculate=False)
        answers = [(i, model.answer(ids, settings)) for i, ids in enumerate(prompts)]
        started = time.perf_counter()
        done = [found for _, found in together(model.rows, answers)]
        seconds = time.perf_counter() - started
        assert all(isinstance(d, Completion) and len(d.tokens) == count for d in done), done
        return calls, seconds

    return run


def theirs(llama: Llama) -> Way:
    """The same of llama.cpp."""

    def run(rows: int, prompts: Sequence[list[int]], count: int) -> tuple[list[float], float]:
        calls, started = list[float](), time.perf_counter()
        tokens = [int(llama.read_row(i, ids).argmax()) for i, ids in enumerate(prompts)]
        for step in range(count - 1):
            begun = time.perf_counter()
            logits = llama.decode_rows(tokens, [len(ids) + step for ids in prompts])
            tokens = logits.argmax(axis=1).tolist()
            calls.append(1000 * (time.perf_counter() - begun))
        return calls, time.perf_counter() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="without ending")
    parser.add_argument("--rows", default="1,2,4,8")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    counts = [int(n) for n in args.rows.split(",")]
    context = args.prompt + args.tokens + 1
    model = load(args.bundle, threads=args.threads, rows=max(counts), max_context=context)
    ways: dict[str, Way] = {"hrm-edge": ours(model)}
    if args.gguf:
        kept: dict[str, Any] = {"threads": args.threads, "kv": "q8_0", "flash": "on"}
        ways["llama.cpp"] = theirs(Llama(args.gguf, context, rows=max(counts), **kept))
    drawn = np.random.default_rng(0).integers(100, model.manifest.model.vocab_size, (8, 4096))
    found: dict[str, dict[int, tuple[list[float], list[float]]]] = {name: {} for name in ways}
    for _ in range(args.rounds):
        for rows in counts:
            prompts = [[int(t) for t in drawn[i, : args.prompt]] for i in range(rows)]
            for name, way in ways.items():
                calls, seconds = way(rows, prompts, args.tokens)
                held = found[name].setdefault(rows, ([], []))
                held[0].extend(calls)
                held[1].append(seconds)
    report = {"machine": machine(), "prompt": args.prompt, "tokens": args.tokens, "rows": []}
    for name, by_rows in found.items():
        for rows, (calls, seconds) in by_rows.items():
            call, whole = statistics.median(calls), statistics.median(seconds)
            figures = {"call_ms": call, "decode_tps": 1000 * rows / call}
            figures["whole_tps"] = rows * args.tokens / whole
            report["rows"].append({"runtime": name, "rows": rows} | figures)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    text = shown(report) + f"\nPeak memory {(memory.peak() or 0) / 2**20:.0f} MiB.\n"
    args.out.with_suffix(".md").write_text(text)
    print(text)


def shown(report: dict[str, Any]) -> str:
    """A table with what each runtime gains by rows."""
    head = ["runtime", "rows", "call ms", "decode tok/s", "x one row", "whole tok/s", "x one row"]
    ones = {row["runtime"]: row for row in report["rows"] if row["rows"] == 1}
    table = []
    for row in report["rows"]:
        one = ones.get(row["runtime"], row)
        gains = [row[key] / one[key] for key in ("decode_tps", "whole_tps")]
        cells = [row["runtime"], str(row["rows"]), f"{row['call_ms']:.1f}"]
        cells += [f"{row['decode_tps']:.1f}", f"{gains[0]:.2f}"]
        table.append([*cells, f"{row['whole_tps']:.1f}", f"{gains[1]:.2f}"])
    about = f"Prompts of {report['prompt']} tokens, answers of {report['tokens']}."
    where = "; ".join(f"{name} {value}" for name, value in report["machine"].items())
    return f"{where}\n\n{about}\n\n{markdown_table(head, table)}\n"


if __name__ == "__main__":
    main()

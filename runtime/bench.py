"""Measures a bundle as llama-bench does: prefill and decode, in tokens per second.

Tokens are random and nothing is sampled from them, so that only the model is timed.
"""

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hrm_edge import memory
from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError

from .session.loading import Loading
from .session.opening import open_rows, settled
from .session.protocol import Session
from .session.threads import default_threads


@dataclass(frozen=True)
class Test:
    """Prefill of n_prompt tokens, or decoding of n_gen behind n_depth; the other is 0.

    With n_parallel rows, which decode n_gen tokens each.
    """

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """llama-bench's: pp512, tg128, tg128 @ d1000; tg128 x4 with four rows."""
        what = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        what += f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return f"{what} @ d{self.n_depth}" if self.n_depth else what

    @property
    def tokens(self) -> int:
        """The number of tokens that are timed."""
        return self.n_prompt + self.n_gen * self.n_parallel

    @property
    def context(self) -> int:
        """The tokens to make room for; decoding needs a prefix of at least one."""
        return self.n_prompt or max(1, self.n_depth) + self.n_gen


@dataclass(frozen=True)
class Result:
    """One test: nanoseconds and tokens per second of every repetition; sizes in bytes."""

    model: str
    model_size: int
    model_n_params: int
    bits: int
    group_size: int
    kv_bits: int
    kv_h_bits: int | None
    h_cycles: int
    l_cycles: str
    kv_share: str
    provider: str
    n_threads: int
    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_parallel: int
    samples_ns: list[int]
    samples_ts: list[float]
    avg_ts: float
    stddev_ts: float
    peak_memory: int | None
    anonymous_memory: int | None


@dataclass(frozen=True)
class Bench:
    """A loaded bundle and what is known of it."""

    rows: Sequence[Session]
    facts: dict[str, Any]
    vocab_size: int

    @classmethod
    def open(
        cls,
        path: Path,
        tests: Sequence[Test],
        loading: Loading,
    ) -> "Bench":
        """Load `path` with as much context as `tests` need. Raises HRMEdgeError."""
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        context = max(2, *(test.context for test in tests))
        if context > manifest.max_seq_len:
            raise HRMEdgeError(
                f"the tests need {context} tokens of context, {path} has {manifest.max_seq_len}; "
                "use a smaller -p, -n or -d"
            )
        loading = settled(bundle, loading)
        count = max(test.n_parallel for test in tests)
        rows = open_rows(bundle, replace(loading, max_context=context, rows=count))
        facts = {
            "model": path.resolve().name,
            "model_size": sum(file.size for file in manifest.files.values()),
            "model_n_params": sum(manifest.model.parameters.values()),
            "bits": manifest.quantization.bits,
            "group_size": manifest.quantization.group_size,
            "kv_bits": manifest.kv_cache.bits,
            "kv_h_bits": manifest.kv_cache.h_bits,
            "kv_share": loading.kv_share,
            "h_cycles": loading.h_cycles or manifest.model.H_cycles,
            "l_cycles": ",".join(map(str, loading.l_cycles or ())) or "all",
            "provider": loading.provider,
            "n_threads": loading.threads or default_threads() or 0,
        }
        return cls(rows, facts, manifest.model.vocab_size)

    @property
    def session(self) -> Session:
        """The first row, which computes what is no matter of several."""
        return self.rows[0]

    def run(self, test: Test, repetitions: int, warm_up: bool = True) -> Result:
        """Time `test` that often, after one run that is not counted."""
        if warm_up:
            self.once(test)
        times = [self.once(test) for _ in range(repetitions)]
        rates = [1e9 * test.tokens / t for t in times]
        return Result(
            **self.facts,
            test=test.name,
            **asdict(test),
            samples_ns=times,
            samples_ts=rates,
            avg_ts=statistics.fmean(rates),
            stddev_ts=statistics.stdev(rates) if len(rates) > 1 else 0.0,
            peak_memory=memory.peak(),
            anonymous_memory=memory.anonymous(),
        )

    def once(self, test: Test) -> int:
        """Nanoseconds of one run of `test`."""
        count = max(test.n_prompt, test.n_gen)
        ids = np.random.default_rng(0).integers(0, self.vocab_size, 1 + test.n_depth + count)
        prefix, rest = ids[: max(1, test.n_depth)].tolist(), ids[-count:].tolist()
        if test.n_prompt:
            return _timed(lambda: self.session.prefill(rest))
        rows = self.rows[: test.n_parallel]
        for row in rows:
            row.start(prefix)
        if len(rows) == 1:
            return _timed(lambda: [self.session.decode([token]) for token in rest])
        several = [[token] * len(rows) for token in rest]
        return _timed(lambda: [self.session.decode_rows(rows, tokens) for tokens in several])

    def sustained(self, test: Test, minutes: float) -> Iterator[tuple[float, float]]:
        """Run `test` over and over: (seconds since the start, tokens per second) of each run."""
        started = time.perf_counter()
        while True:
            taken = self.once(test)
            seconds = time.perf_counter() - started
            yield seconds, 1e9 * test.tokens / taken
            if seconds >= 60 * minutes:
                return


def _timed(work: Callable[[], object]) -> int:
    started = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - started


def plan(
    prompts: Sequence[int],
    answers: Sequence[int],
    depths: Sequence[int],
    rows: Sequence[int] = (1,),
) -> list[Test]:
    """The tests to run. Prefill has no depth: a prompt is read in one call, whatever its length."""
    tests = [Test(n_prompt=p) for p in prompts if p]
    tests += [Test(0, n, d, r) for d in depths for n in answers for r in rows if n]
    if not tests:
        raise HRMEdgeError("there is nothing to measure; give -p or -n more than 0")
    return tests


def as_json(results: Sequence[Result]) -> str:
    """All results with every sample."""
    return json.dumps([asdict(result) for result in results], indent=2)


def as_csv(results: Sequence[Result]) -> str:
    """A line for each result, without its samples."""
    text = io.StringIO()
    rows = [{k: v for k, v in asdict(r).items() if "samples" not in k} for r in results]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_markdown(results: Sequence[Result]) -> str:
    """llama-bench's table."""
    head = ["model", "size", "params", "backend", "threads", "test", "t/s"]
    rows = [[*_identity(r), r.test, f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}"] for r in results]
    return markdown_table(head, rows)


def _identity(r: Result) -> list[str]:
    weights = f" int{r.bits}" if r.bits < 16 else ""
    in_h = "" if r.kv_h_bits is None else f"h{r.kv_h_bits}"
    name = f"{r.model}{weights} kv{r.kv_bits}{in_h}"
    size, parameters = f"{r.model_size / 2**20:.2f} MiB", f"{r.model_n_params / 1e6:.2f} M"
    backend = "onnxruntime" if r.provider == "cpu" else f"onnxruntime {r.provider}"
    return [name, size, parameters, backend, str(r.n_threads or "auto")]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [_line(head, widths)]
    lines.append("| " + " | ".join("-" * (w - 1) + (":" if i else "-") for i, w in _each(widths)))
    lines[-1] += " |"
    return "\n".join(lines + [_line(row, widths) for row in rows])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[i].rjust(w) if i else row[i].ljust(w) for i, w in _each(widths)]
    return "| " + " | ".join(cells) + " |"


def _each(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(enumerate(widths))

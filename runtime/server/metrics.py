"""Counts what the server does and writes it as Prometheus text (exposition format 0.0.4)."""

from collections import Counter
from collections.abc import Iterable, Mapping

from hrm_edge import memory

from ..engine import Stats
from .queue import Worker

TTFT_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
Samples = Iterable[tuple[Mapping[str, str], float]]


class Metrics:
    """Counters of one server. Written and read in the event loop's thread only."""

    def __init__(self) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.ttft: Counter[float] = Counter()
        self.ttft_sum = self.decode_tps = 0.0
        self.answers = 0

    def answered(self, stats: Stats) -> None:
        """Count a finished answer; its tokens were counted as they came."""
        self.answers += 1
        self.prompt_tokens += stats.prompt_tokens
        self.ttft_sum += stats.ttft
        self.ttft.update(bound for bound in TTFT_BOUNDS if stats.ttft <= bound)
        self.decode_tps = stats.decode_tps

    def text(self, worker: Worker) -> str:
        """All metrics, those of `worker` and of the process's memory included."""
        responses = [({"path": p, "status": str(s)}, n) for (p, s), n in self.responses.items()]
        outcomes = [({"outcome": name}, n) for name, n in worker.counts.items()]
        lines = [
            *_metric("http_responses_total", "counter", "Responses by path and status", responses),
            *_metric("requests_total", "counter", "Generation requests by outcome", outcomes),
            *_one("prompt_tokens_total", "counter", "Tokens of prompts", self.prompt_tokens),
            *_one("completion_tokens_total", "counter", "Tokens made", self.completion_tokens),
            *_one("queued_requests", "gauge", "Requests that wait", worker.queued),
            *_one("running_requests", "gauge", "Requests being answered", len(worker.running)),
            *_one("rows", "gauge", "Answers that can be computed at once", worker.rows.count),
            *_metric("row_tokens_total", "counter", "Tokens given, by row", _by_row(worker)),
            *_one("decode_tokens_per_second", "gauge", "Of the last answer", self.decode_tps),
            *self._histogram(),
        ]
        held = {"anonymous": memory.anonymous(), "peak": memory.peak()}
        for name, size in held.items():
            if size is not None:
                lines += _one(f"{name}_memory_bytes", "gauge", "Of this process", size)
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[str]:
        name = "hrm_edge_ttft_seconds"
        buckets = [f'{name}_bucket{{le="{b}"}} {self.ttft[b]}' for b in TTFT_BOUNDS]
        return [
            f"# HELP {name} Time to the first token, without the wait in the queue",
            f"# TYPE {name} histogram",
            *buckets,
            f'{name}_bucket{{le="+Inf"}} {self.answers}',
            f"{name}_sum {self.ttft_sum}",
            f"{name}_count {self.answers}",
        ]


def _by_row(worker: Worker) -> Samples:
    return [({"row": str(row)}, made) for row, made in enumerate(worker.rows.tokens)]


def _one(name: str, kind: str, says: str, value: float) -> list[str]:
    return _metric(name, kind, says, [({}, value)])


def _metric(name: str, kind: str, says: str, samples: Samples) -> list[str]:
    lines = [f"# HELP hrm_edge_{name} {says}", f"# TYPE hrm_edge_{name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
        lines.append(
            f"hrm_edge_{name}{{{inside}}} {value}" if inside else f"hrm_edge_{name} {value}"
        )
    return lines

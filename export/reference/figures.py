"""How far one model's predictions are from another's, in the figures that the gate is about."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrm_edge.numerics import log_softmax

ROWS_BYTES = 1 << 26  # of float64 logits looked at together


@dataclass(frozen=True)
class Figures:
    """Over the answers' tokens. KL divergence (nats) and top-1 agreement are to the reference and
    None without one; perplexity is of the right answer; exact_match is the share of samples whose
    every answer token ranks first, which is what greedy decoding gives.
    """

    perplexity: float
    exact_match: float
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1: float | None = None


class Tally:
    """Collects predictions batch by batch."""

    def __init__(self) -> None:
        self._losses: list[np.ndarray] = []
        self._divergences: list[np.ndarray] = []
        self._agree: list[np.ndarray] = []
        self._exact: list[bool] = []

    def add(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        answers: Sequence[int],
        reference: np.ndarray | None = None,
    ) -> None:
        """Logits [n, V] of the tokens `targets` [n], `answers` counting those of each sample."""
        assert len(logits) == len(targets) == sum(answers), (len(logits), len(targets))
        rows = max(1, ROWS_BYTES // (8 * logits.shape[1]))
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            got = log_softmax(logits[part])
            self._losses.append(-np.take_along_axis(got, targets[part, None], 1)[:, 0])
            if reference is not None:
                expected = log_softmax(reference[part])
                self._divergences.append((np.exp(expected) * (expected - got)).sum(-1))
                self._agree.append(expected.argmax(-1) == got.argmax(-1))
        hits = np.split(logits.argmax(-1) == targets, np.cumsum(answers)[:-1])
        self._exact += [bool(hit.all()) for hit in hits]

    def figures(self) -> Figures:
        """The figures over all that was added."""
        perplexity = float(np.exp(np.concatenate(self._losses).mean()))
        exact = sum(self._exact) / len(self._exact)
        if not self._agree:
            return Figures(perplexity, exact)
        divergences = np.concatenate(self._divergences)
        return Figures(
            perplexity,
            exact,
            kl_mean=float(divergences.mean()),
            kl_p99=float(np.quantile(divergences, 0.99)),
            top1=float(np.concatenate(self._agree).mean()),
        )

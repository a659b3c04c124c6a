"""From logits to the next token: a sampler is a closure over its settings.

Filters see the distribution before temperature, as in llama.cpp: top_k, then top_p, then min_p,
then temperature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hrm_edge.numerics import log_softmax

from .processors import Processor

Sampler = Callable[[np.ndarray], int]


@dataclass(frozen=True)
class Choice:
    """A drawn token; natural log-probabilities under the model itself, where they are wanted."""

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token, logprob), likeliest first


Chooser = Callable[[Sequence[int], np.ndarray], Choice]


def make_chooser(
    sample: Sampler, processors: Sequence[Processor], logprobs: int | None = None
) -> Chooser:
    """A function from the answer so far and logits [V] to the next token.

    Log-probabilities are those before processors, filters and temperature, `logprobs` likeliest
    tokens beside the drawn one; None leaves them out.
    """

    def choose(answer: Sequence[int], logits: np.ndarray) -> Choice:
        scores = logits
        for process in processors:
            scores = process(answer, scores)
        token = sample(scores)
        return Choice(token) if logprobs is None else _with_logprobs(token, logits, logprobs)

    return choose


def _with_logprobs(token: int, logits: np.ndarray, count: int) -> Choice:
    logs = log_softmax(logits)
    ids = _likeliest(logits, count) if count else np.array([], np.int64)
    top = tuple((int(i), float(logs[i])) for i in ids[:count])
    return Choice(token, float(logs[token]), top)


def make_sampler(
    temperature: float, top_k: int, top_p: float, min_p: float, seed: int | None
) -> Sampler:
    """A function from float32 logits [V] to a token id; greedy at temperature 0.

    top_k 0, top_p 1 and min_p 0 switch a filter off; `seed` None draws one from the system.
    """
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    rng = np.random.default_rng(seed)

    def sample(logits: np.ndarray) -> int:
        ids, probabilities = candidates(logits, temperature, top_k, top_p, min_p)
        return int(ids[np.searchsorted(np.cumsum(probabilities), rng.random(), side="right")])

    return sample


def candidates(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[np.ndarray, np.ndarray]:
    """The ids that pass the filters, and their probabilities (float64, sum 1)."""
    # sorting a vocabulary takes milliseconds, so it is left out where no filter needs the order
    ordered = 0 < top_k < len(logits) or top_p < 1
    ids = _likeliest(logits, top_k) if ordered else np.arange(len(logits))
    probabilities = softmax(logits[ids].astype(np.float64))
    if top_p < 1:
        # keeps the token that crosses the threshold; at least one stays
        before = np.cumsum(probabilities) - probabilities
        ids, probabilities = ids[before < top_p], probabilities[before < top_p]
    if min_p > 0:
        kept = probabilities >= min_p * probabilities.max()
        ids = ids[kept]
    probabilities = softmax(logits[ids].astype(np.float64) / temperature)
    return ids, probabilities / probabilities.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis, in the dtype of `logits`."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _likeliest(logits: np.ndarray, top_k: int) -> np.ndarray:
    if 0 < top_k < len(logits):
        ids = np.argpartition(-logits, top_k - 1)[:top_k]
        return ids[np.argsort(-logits[ids], kind="stable")]
    return np.argsort(-logits, kind="stable")

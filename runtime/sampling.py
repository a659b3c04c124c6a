"""From logits to the next token: a sampler is a closure over its settings.

Filters see the distribution before temperature, as in llama.cpp: top_k, then top_p, then min_p,
then temperature.
"""

from collections.abc import Callable

import numpy as np

Sampler = Callable[[np.ndarray], int]


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
    """The ids that pass the filters, likeliest first, and their probabilities (float64, sum 1)."""
    ids = _likeliest(logits, top_k)
    probabilities = softmax(logits[ids].astype(np.float64))
    if top_p < 1:
        # keeps the token that crosses the threshold; at least one stays
        before = np.cumsum(probabilities) - probabilities
        ids, probabilities = ids[before < top_p], probabilities[before < top_p]
    if min_p > 0:
        kept = probabilities >= min_p * probabilities[0]
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

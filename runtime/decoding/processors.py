"""Logits processors: closures that change logits before a token is drawn.

A processor is called with the answer so far and the logits [V] of the next token, in the order of
the answer, once per token that is drawn. It returns new logits and leaves its argument alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hrm_edge.errors import HRMEdgeError

from ..settings import Settings

Processor = Callable[[Sequence[int], np.ndarray], np.ndarray]


def make_processors(settings: Settings, prompt: Sequence[int], vocab_size: int) -> list[Processor]:
    """The processors that `settings` ask for. Raises HRMEdgeError for a biased id out of range."""
    made: list[Processor] = []
    if settings.repetition_penalty != 1:
        made.append(repetition_penalty(settings.repetition_penalty, prompt))
    if settings.presence_penalty or settings.frequency_penalty:
        made.append(count_penalty(settings.presence_penalty, settings.frequency_penalty))
    if settings.logit_bias:
        made.append(logit_bias(settings.logit_bias, vocab_size))
    return made


def repetition_penalty(penalty: float, prompt: Sequence[int]) -> Processor:
    """Divide positive logits of every token seen, in the prompt too, and multiply negative ones.

    The formula of CTRL (arXiv 1909.05858), with transformers' treatment of the sign.
    """
    seen_in_prompt = np.unique(np.asarray(prompt, np.int64))

    def process(answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        ids = np.union1d(seen_in_prompt, np.asarray(answer, np.int64))
        scores, found = logits.copy(), logits[ids]
        scores[ids] = np.where(found < 0, found * penalty, found / penalty)
        return scores

    return process


def count_penalty(presence: float, frequency: float) -> Processor:
    """Subtract `presence` + count * `frequency` for tokens of the answer, as OpenAI's API does."""

    def process(answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        ids, counts = np.unique(np.asarray(answer, np.int64), return_counts=True)
        scores = logits.copy()
        scores[ids] -= (presence + frequency * counts).astype(logits.dtype)
        return scores

    return process


def logit_bias(bias: Mapping[int, float], vocab_size: int) -> Processor:
    """Add a number to the logits of some tokens. Raises HRMEdgeError for an id out of range."""
    for token in bias:
        if not 0 <= token < vocab_size:
            expected = f"expected 0 to {vocab_size - 1}"
            raise HRMEdgeError(f"logit_bias has token {token}, {expected}", "logit_bias")
    ids = np.array(list(bias), np.int64)
    added = np.array(list(bias.values()), np.float32)

    def process(answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        scores = logits.copy()
        scores[ids] += added
        return scores

    return process

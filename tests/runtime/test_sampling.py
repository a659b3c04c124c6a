"""Filters, checked against transformers' logits warpers, and draws against their distribution."""

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hrm_edge.runtime.decoding.sampling import candidates, make_sampler

LOGITS = np.random.default_rng(0).standard_normal(50).astype(np.float32) * 3


@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_k": 7}, TopKLogitsWarper(7)),
        ({"top_k": 80}, TopKLogitsWarper(80)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"top_p": 0.01}, TopPLogitsWarper(0.01)),
        ({"min_p": 0.1}, MinPLogitsWarper(0.1)),
    ],
)
def test_filters_keep_what_transformers_keeps(options: dict, warper) -> None:
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    ids, probabilities = candidates(LOGITS, **settings)
    scores = warper(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(LOGITS)[None].clone())
    expected = scores.softmax(-1)[0].numpy()
    assert set(ids) == set(np.flatnonzero(expected))
    np.testing.assert_allclose(probabilities, expected[ids], rtol=1e-5)


def test_temperature_zero_is_greedy() -> None:
    assert make_sampler(0, 0, 1, 0, None)(LOGITS) == LOGITS.argmax()


def test_the_same_seed_draws_the_same_tokens() -> None:
    draws = [[make_sampler(1, 0, 1, 0, seed)(LOGITS) for _ in range(5)] for seed in (1, 1)]
    assert draws[0] == draws[1]
    sample = make_sampler(1, 0, 1, 0, 1)
    assert len({sample(LOGITS) for _ in range(50)}) > 3


def test_draws_follow_the_distribution() -> None:
    sample, count = make_sampler(0.7, 10, 0.95, 0.0, 3), 20_000
    ids, expected = candidates(LOGITS, 0.7, 10, 0.95, 0.0)
    drawn = np.bincount([sample(LOGITS) for _ in range(count)], minlength=len(LOGITS))
    assert drawn.sum() == drawn[ids].sum()
    spread = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(drawn[ids] / count - expected) < 5 * spread).all()

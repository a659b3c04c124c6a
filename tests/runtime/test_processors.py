"""Penalties and biases, checked against transformers and against loops."""

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime.decoding.processors import count_penalty, logit_bias, repetition_penalty

LOGITS = np.random.default_rng(0).standard_normal(50).astype(np.float32) * 3
PROMPT, ANSWER = [3, 7, 7, 9], [1, 7, 20, 1, 1]


@pytest.mark.parametrize("penalty", [0.7, 1.3])
@pytest.mark.parametrize("answer", [[], ANSWER])
def test_the_repetition_penalty_is_transformers(penalty: float, answer: list[int]) -> None:
    before = LOGITS.copy()
    scores = repetition_penalty(penalty, PROMPT)(answer, LOGITS)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    seen = torch.LongTensor([PROMPT + answer])
    expected = theirs(seen, torch.FloatTensor(LOGITS)[None].clone())[0].numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert (before == LOGITS).all()


def test_presence_and_frequency_follow_the_formula_of_openai() -> None:
    expected = LOGITS.astype(np.float64)
    for token in range(len(expected)):
        count = ANSWER.count(token)
        expected[token] -= count * 0.3 + (count > 0) * 1.1
    scores = count_penalty(1.1, 0.3)(ANSWER, LOGITS)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    np.testing.assert_array_equal(count_penalty(1.1, 0.3)([], LOGITS), LOGITS)


def test_a_bias_is_transformers() -> None:
    scores = logit_bias({4: 2.5, 0: -7.0}, 50)([], LOGITS)
    theirs = SequenceBiasLogitsProcessor([[[4], 2.5], [[0], -7.0]])
    expected = theirs(torch.LongTensor([[1]]), torch.FloatTensor(LOGITS)[None].clone())[0].numpy()
    np.testing.assert_allclose(scores, expected)


@pytest.mark.parametrize("token", [-1, 50])
def test_a_bias_for_a_token_that_is_not_there_is_refused(token: int) -> None:
    with pytest.raises(HRMEdgeError, match=f"logit_bias has token {token}, expected 0 to 49"):
        logit_bias({token: 1.0}, 50)

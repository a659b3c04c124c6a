"""The shipped hrm-tiny: what its card says is so, and transformers reads the same model."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HrmTextForCausalLM

from benchmarks.hrm_tiny_data import FAMILIES, HELD_OUT, WARMUP, mix
from benchmarks.hrm_tiny_release import LIMIT, SHIPPED, read_rows, score
from hrm_edge.model import HRMText, prefix_mask
from hrm_edge.prompt import ANSWER_END, SPECIAL_TOKENS, Tokenizer, format_prompt
from hrm_edge.training.weights import load_model

pytestmark = pytest.mark.slow

END = SPECIAL_TOKENS[ANSWER_END]
QUESTIONS = read_rows(SHIPPED / "questions.jsonl")


@pytest.fixture(scope="module")
def ours() -> HRMText:
    return load_model(SHIPPED).eval()


@pytest.fixture(scope="module")
def theirs() -> HrmTextForCausalLM:
    return HrmTextForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()


def last_questions() -> list[dict[str, str]]:
    """The last question of each task (reference_logits.npz has the first)."""
    return list({row["task"]: row for row in QUESTIONS}.values())


@torch.no_grad()
def our_answer(model: HRMText, prompt: list[int], most: int = 48) -> list[int]:
    """Greedy answer, the whole sequence run anew for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] != END):
        mask = prefix_mask(torch.tensor([len(prompt)]), len(ids))
        ids.append(int(model(torch.tensor([ids]), mask=mask)[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def their_answer(model: HrmTextForCausalLM, prompt: list[int], most: int = 48) -> list[int]:
    """The same through transformers."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] != END):
        types = torch.tensor([[1] * len(prompt) + [0] * (len(ids) - len(prompt))])
        out = model(torch.tensor([ids]), token_type_ids=types, use_cache=False)
        ids.append(int(out.logits[0, -1].argmax()))
    return ids[len(prompt) :]


def references() -> Iterator[tuple[list[int], list[int], np.ndarray]]:
    """(prompt, answer, logits) of every question in reference_logits.npz."""
    found = np.load(SHIPPED / "reference_logits.npz")
    for i in range(len(found.files) // 3):
        yield found[f"prompt_{i}"].tolist(), found[f"answer_{i}"].tolist(), found[f"logits_{i}"]


def published() -> dict[str, float]:
    """Exact match in percent per task, from the card's table."""
    card = (SHIPPED / "README.md").read_text()
    rows = re.findall(r"^\| \**(\w+)\** \| \**([\d.]+)\** \|", card, re.MULTILINE)
    return {task: float(percent) for task, percent in rows}


def test_a_quarter_of_the_held_out_questions_is_answered_as_the_card_says(tmp_path: Path) -> None:
    scores = score(SHIPPED, SHIPPED / "questions.jsonl", tmp_path, per_task=50)
    measured = {task: 100 * found.exact_match for task, found in scores.items()}
    mean = sum(measured.values()) / len(measured)
    assert published() == pytest.approx(measured | {"mean": mean}, abs=8)
    assert published()["mean"] == pytest.approx(mean, abs=2)


def test_it_answers_nine_in_ten_over_at_least_six_families() -> None:
    figures = published()
    assert figures.pop("mean") >= 90
    assert len(figures) >= 6
    assert set(figures) == {family.name for family in FAMILIES}


def test_transformers_gives_the_same_answers_and_they_are_right(
    ours: HRMText, theirs: HrmTextForCausalLM
) -> None:
    tokenizer, right = Tokenizer(SHIPPED), 0
    rows = last_questions()
    for row in rows:
        prompt = tokenizer.encode(format_prompt(row["instruction"]))
        answer = our_answer(ours, prompt)
        assert answer == their_answer(theirs, prompt), row
        right += tokenizer.decode(answer) == row["response"]
    assert right >= len(rows) - 2


def test_the_reference_logits_are_those_of_our_model(ours: HRMText) -> None:
    for prompt, answer, expected in references():
        ids = prompt + answer[:-1]
        mask = prefix_mask(torch.tensor([len(prompt)]), len(ids))
        with torch.no_grad():
            logits = ours(torch.tensor([ids]), mask=mask)[0, len(prompt) - 1 :].numpy()
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_every_task_has_reference_logits() -> None:
    assert sum(1 for _ in references()) == len(FAMILIES)


def test_held_out_questions_are_in_neither_training_mix() -> None:
    warmup = mix([replace(family, lines=1000) for family in WARMUP])["train"]
    rows = mix([replace(family, lines=1000) for family in FAMILIES], avoid=warmup)
    held_out = {row["instruction"] for row in rows["test"] + rows["valid"]}
    assert len(held_out) == len(FAMILIES) * sum(HELD_OUT.values())
    assert not held_out & {row["instruction"] for row in rows["train"] + warmup}


def test_words_in_capitals_and_digits_are_never_merged() -> None:
    tokenizer = Tokenizer(SHIPPED)
    for text in ("BACKWARD", "AND", "2889", "STRENGTHS"):
        assert len(tokenizer.encode(text)) == len(text)


def test_the_package_data_stays_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) <= LIMIT

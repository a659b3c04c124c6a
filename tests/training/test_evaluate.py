"""Evaluation by one forward against generating the answers token by token."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hrm_edge.model import HRMText, KVCache
from hrm_edge.prompt import SPECIAL_TOKENS
from hrm_edge.training import train
from hrm_edge.training.data import Samples, tokenize
from hrm_edge.training.distributed import World
from hrm_edge.training.evaluate import evaluate, score
from hrm_edge.training.weights import load_model
from tiny_training import TINY, letters, metrics

pytestmark = pytest.mark.slow

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt some of the task."""
    folder = tmp_path_factory.mktemp("run")
    config = replace(TINY, run=replace(TINY.run, steps=20, batch_tokens=512, checkpoint_every=0))
    train(
        config,
        letters(folder / "train.jsonl", 400, seed=0),
        folder / "out",
        valid=letters(folder / "valid.jsonl", 60, seed=1),
        quiet=True,
    )
    return folder


def generated(model: HRMText, prompt: list[int], most: int) -> list[int]:
    """Greedy decoding with the KV cache."""
    cache, ids, answer = KVCache(model.config, 1, len(prompt) + most), prompt, []
    with torch.no_grad():
        while len(answer) < most and answer[-1:] != [SPECIAL_TOKENS["<|box_end|>"]]:
            ids = [int(model(torch.tensor([ids]), cache=cache)[0, -1].argmax())]
            answer += ids
    return answer


def held_out(trained: Path) -> Samples:
    tokenizer = trained / "out/tokenizer"
    return tokenize(trained / "valid.jsonl", tokenizer, trained / "out/data", longest=32)


def test_exact_match_is_that_of_greedy_decoding(trained: Path) -> None:
    model, samples = load_model(trained / "out/checkpoint"), held_out(trained)
    right = dict.fromkeys(samples.tasks, 0)
    for entry in samples.table:
        ids = samples.tokens[entry["start"] : entry["start"] + entry["length"]].astype(int).tolist()
        prompt, answer = ids[: entry["prompt"]], ids[entry["prompt"] :]
        right[samples.tasks[entry["task"]]] += generated(model, prompt, len(answer)) == answer
    scores = evaluate(model, samples, ALONE, rows=4, capacity=32)
    counts = {name: round(s.exact_match * s.samples) for name, s in scores.items()}
    assert counts == right
    assert 0 < sum(right.values()) < 60  # some right, some wrong


def test_scores_do_not_depend_on_the_packing(trained: Path) -> None:
    model, samples = load_model(trained / "out/checkpoint"), held_out(trained)
    few, many = (evaluate(model, samples, ALONE, rows=r, capacity=c) for r, c in ((1, 24), (8, 64)))
    for name in samples.tasks:
        assert few[name].loss == pytest.approx(many[name].loss, rel=1e-5)
        assert few[name].exact_match == many[name].exact_match


def test_a_checkpoint_scores_as_its_run_did_at_the_end(trained: Path) -> None:
    last = metrics(trained / "out", "scores")[-1]
    scores = score(trained / "out/checkpoint", trained / "valid.jsonl")
    for name, found in scores.items():
        assert found.loss == pytest.approx(last[name]["loss"], rel=0.02)  # bf16 weights
        assert found.samples == last[name]["samples"]


def test_at_most_so_many_samples_of_each_task(trained: Path) -> None:
    model = load_model(trained / "out/checkpoint")
    scores = evaluate(model, held_out(trained), ALONE, rows=4, capacity=32, per_task=5)
    assert [s.samples for s in scores.values()] == [5, 5]

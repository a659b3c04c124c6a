"""The shipped hrm-tiny as GGUF in the prebuilt llama.cpp."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hrm_tiny_release import SHIPPED, read_rows
from benchmarks.llamacpp import Llama
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.export.quantize.plan import make_plan
from hrm_edge.export.targets import GGUFTarget
from hrm_edge.export.to_gguf.write import write_gguf
from hrm_edge.prompt import Tokenizer, format_prompt
from hrm_edge.training.weights import load_model

pytestmark = pytest.mark.slow

QUESTIONS = read_rows(SHIPPED / "questions.jsonl")


def spread(count: int) -> list[dict[str, str]]:
    """`count` questions from all over the file, and so from every task."""
    return QUESTIONS[:: len(QUESTIONS) // count][:count]


def test_causal_logits_match_the_reference(tmp_path: Path) -> None:
    write_gguf(make_plan(Checkpoint.open(SHIPPED), GGUFTarget("f16", causal=True)), tmp_path, 512)
    tokenizer, reference = Tokenizer(SHIPPED), load_model(SHIPPED)
    worst, agreeing = 0.0, []
    with Llama(tmp_path / "model.gguf", 512, 1, kv="f32", flash="off") as llama:
        for question in spread(18):
            text = format_prompt(question["instruction"]) + question["response"]
            ids = tokenizer.encode(text)
            assert llama.tokenize(text) == ids
            causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            with torch.no_grad():
                expected = reference(torch.tensor([ids]), mask=causal)[0].numpy()
            llama.rewind(0)
            found = llama.decode(ids)
            worst = max(worst, np.abs(found - expected).max() / np.abs(expected).max())
            agreeing.append(found.argmax(-1) == expected.argmax(-1))
    assert worst <= 1e-2
    assert np.concatenate(agreeing).mean() >= 0.995


def test_our_file_answers_as_the_reference_does(tmp_path: Path) -> None:
    write_gguf(make_plan(Checkpoint.open(SHIPPED), GGUFTarget("f16")), tmp_path, 512)
    reference = load_model(SHIPPED)
    same = []
    with Llama(tmp_path / "model.gguf", 512, 1) as llama:
        for question in spread(18):
            prompt = llama.tokenize(format_prompt(question["instruction"]))
            logits, ids = llama.prefill(prompt), list(prompt)
            while (token := int(logits.argmax())) != llama.eos and len(ids) < len(prompt) + 24:
                ids.append(token)
                logits = llama.decode([token])[0]
            with torch.no_grad():
                mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
                mask[: len(prompt), : len(prompt)] = True
                expected = reference(torch.tensor([ids]), mask=mask)[0].argmax(-1)
            same.append(expected[len(prompt) - 1 : -1].tolist() == ids[len(prompt) :])
    assert np.mean(same) >= 0.95

"""Generating: streams, stops, limits, seeds, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime import Model, load, memory


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


def test_generate_gathers_what_stream_yields(model: Model) -> None:
    done = model.generate("Hello", max_tokens=30)
    pieces = list(model.stream("Hello", max_tokens=30))
    assert "".join(p.text for p in pieces) == done.text
    assert [p.token for p in pieces] == done.tokens
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_greedy_tokens_are_those_of_the_session(model: Model) -> None:
    done = model.generate("Hello", max_tokens=12)
    logits, expected = model.session.prefill(model.encode("Hello", "direct")), []
    for _ in done.tokens:
        expected.append(int(logits.argmax()))
        logits = model.session.decode([expected[-1]])[0]
    assert done.tokens == expected


def test_an_answer_stops_at_the_end_token_which_has_no_text(model: Model) -> None:
    greedy = model.generate("Hello", max_tokens=8).tokens
    stop = greedy[5]
    manifest = replace(model.manifest, eos_token_ids=(stop,))
    done = Model(model.session, model.tokenizer, manifest).generate("Hello", max_tokens=50)
    assert done.finish_reason == "stop"
    assert done.tokens == greedy[: greedy.index(stop) + 1]
    whole = model.tokenizer.decode(done.tokens[:-1])
    assert whole.startswith(done.text) and whole[len(done.text) :] in ("", "\ufffd")


def test_max_tokens_and_the_context_end_an_answer_with_length(shared_bundle: Path) -> None:
    model = load(shared_bundle, threads=1, max_context=16)
    assert model.generate("Hi", max_tokens=3).finish_reason == "length"
    done = model.generate("Hi", max_tokens=1000)
    if done.finish_reason == "length":
        assert len(model.encode("Hi", "direct")) + len(done.tokens) == 16


def test_a_seed_repeats_a_sample_and_another_changes_it(model: Model) -> None:
    def sample(seed: int) -> list[int]:
        return model.generate("Hello", temperature=1.0, seed=seed, max_tokens=10).tokens

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_an_abandoned_stream_leaves_the_model_usable(model: Model) -> None:
    expected = model.generate("Hello", max_tokens=5).tokens
    stream = model.stream("Something else", max_tokens=50)
    next(stream)
    next(stream)
    assert model.generate("Hello", max_tokens=5).tokens == expected


def test_conditions_change_the_prefix(model: Model) -> None:
    assert model.encode("Hi", "synth,cot")[:3] == [6, 13, 9]
    assert model.encode("Hi", "")[0:2] != model.encode("Hi", "direct")[0:2]


def test_stats_add_up(model: Model) -> None:
    done = model.generate("Hello", max_tokens=6)
    assert done.stats.prompt_tokens == len(model.encode("Hello", "direct"))
    assert done.stats.completion_tokens == len(done.tokens)
    assert done.stats.ttft > 0 and done.stats.prefill_tps > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0, expected more than 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -2}, "top_k is -2"),
        ({"min_p": 1}, "min_p is 1, expected 0"),
        ({"max_tokens": 0}, "max_tokens is 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"condition": "fast"}, "unknown condition 'fast'"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_runs(
    model: Model, options: dict, message: str
) -> None:
    with pytest.raises(HRMEdgeError, match=message):
        model.stream("Hello", **options)


def test_a_prompt_longer_than_the_context_is_refused(shared_bundle: Path) -> None:
    model = load(shared_bundle, threads=1, max_context=16)
    with pytest.raises(HRMEdgeError, match="the prompt is 53 tokens long, max_context is 16"):
        model.stream("x" * 50)


@pytest.mark.parametrize("context", [1, 257])
def test_a_context_outside_the_bundle_is_refused(shared_bundle: Path, context: int) -> None:
    with pytest.raises(HRMEdgeError, match=f"max_context is {context}, expected 2 to 256"):
        load(shared_bundle, max_context=context)


def test_a_context_larger_than_memory_is_refused(shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(shared_bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["max_seq_len"] = 10**12
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HRMEdgeError, match="GiB for its KV cache"):
        load(path, max_context=10**12)


def test_a_tokenizer_of_another_model_is_refused(shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(shared_bundle, path)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"<extra{i}>": 270 + i for i in range(100)}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"]["size"] = (path / "tokenizer.json").stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HRMEdgeError, match="its tokenizer has 370 tokens, the model 288"):
        load(path)


def test_a_damaged_graph_is_one_line(shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(shared_bundle, path)
    graph = path / "model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(HRMEdgeError, match=r"model\.onnx: ONNX Runtime .* cannot load it"):
        load(path)


def test_the_cache_is_committed_only_where_it_is_written(shared_bundle: Path) -> None:
    model = load(shared_bundle, threads=1)
    before = memory.anonymous()
    model.session.prefill(list(range(14, 20)))
    after = memory.anonymous()
    assert before is not None and after is not None
    whole = model.manifest.kv_cache.bytes_per_token * model.session.max_context
    assert after - before < whole
    assert np.isfinite(model.session.decode([15])).all()

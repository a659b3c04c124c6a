"""Generating: streams, stops, limits, seeds, and what is refused."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hrm_edge import memory
from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime import Cancelled, Model, load
from hrm_edge.runtime.engine import Settings, likelihood


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
    done = model.generate("A prompt not seen before", max_tokens=6)
    assert done.stats.prompt_tokens == len(model.encode("A prompt not seen before", "direct"))
    assert done.stats.completion_tokens == len(done.tokens)
    assert done.stats.ttft > 0 and done.stats.prefill_tps > 0
    assert done.stats.cached_tokens == 0


def test_an_identical_prefix_is_not_computed_again(model: Model, monkeypatch) -> None:
    first = model.generate("Read me once", max_tokens=9)
    monkeypatch.setattr(model.session, "prefill", None)
    again = model.generate("Read me once", max_tokens=9)
    assert again.tokens == first.tokens
    assert again.stats.cached_tokens == again.stats.prompt_tokens and again.stats.prefill_tps == 0


def test_an_answer_ends_where_another_begins(model: Model) -> None:
    stream = model.stream("Hello", max_tokens=50)
    next(stream)
    model.generate("Something else", max_tokens=2)
    with pytest.raises(HRMEdgeError, match="another answer was begun"):
        next(stream)


def test_cancelling_from_another_thread_ends_a_long_prefill(shared_bundle: Path) -> None:
    model = load(shared_bundle, threads=1)
    stop = threading.Event()

    def cancel() -> None:
        while not stop.is_set():
            model.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        model.generate("x" * 240, max_tokens=10)
    stop.set()
    thread.join()
    assert len(model.generate("Hello", max_tokens=3).tokens) == 3


def test_a_stop_string_ends_an_answer_wherever_tokens_end(model: Model) -> None:
    whole = model.generate("Hello", temperature=1.5, seed=1, max_tokens=40)
    for length in (1, 2, 3, 7):
        stop = whole.text[9 : 9 + length]
        done = model.generate("Hello", temperature=1.5, seed=1, max_tokens=40, stop=stop)
        assert done.text == whole.text[: whole.text.index(stop)]
        assert done.finish_reason == "stop"
        assert done.tokens == whole.tokens[: len(done.tokens)]


def test_text_held_back_for_a_stop_string_comes_with_the_end(model: Model) -> None:
    whole = model.generate("Hello", temperature=1.5, seed=1, max_tokens=12)
    done = model.generate(
        "Hello", temperature=1.5, seed=1, max_tokens=12, stop=[whole.text[-2:] + "never"]
    )
    assert (done.text, done.finish_reason) == (whole.text, "length")


def test_logprobs_are_those_of_the_model(model: Model) -> None:
    pieces = list(model.stream("Hello", temperature=1, seed=3, max_tokens=5, logprobs=4))
    rows = [model.session.prefill(model.encode("Hello", "direct"))]
    rows += [model.session.decode([piece.token])[0] for piece in pieces[:-1]]
    for piece, row in zip(pieces, rows, strict=True):
        logs = torch.from_numpy(row).double().log_softmax(-1)
        assert piece.logprob == pytest.approx(float(logs[piece.token]), abs=1e-4)
        expected = logs.topk(4)
        assert [token for token, _ in piece.top_logprobs] == expected.indices.tolist()
        found = [logprob for _, logprob in piece.top_logprobs]
        assert found == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_samples_are_those_of_their_seeds_and_the_best_can_be_told(model: Model) -> None:
    found = model.samples("Samples", 3, temperature=1, seed=5, max_tokens=6)
    for i, done in enumerate(found):
        assert (
            done.tokens == model.generate("Samples", temperature=1, seed=5 + i, max_tokens=6).tokens
        )
        assert done.stats.cached_tokens == (done.stats.prompt_tokens if i else 0)
    best = max(found, key=likelihood)
    assert sum(best.logprobs) == max(sum(done.logprobs) for done in found)


def test_penalties_and_bias_reach_the_drawn_tokens(model: Model) -> None:
    plain = model.generate("Hello", max_tokens=30).tokens
    banned = model.generate("Hello", max_tokens=30, logit_bias={plain[0]: -100}).tokens
    assert plain[0] not in banned
    wished = model.generate("Hello", max_tokens=5, logit_bias={65: 100.0}).tokens
    assert wished == [65] * 5
    often = {66: 50.0}
    same = model.generate("Hello", max_tokens=30, logit_bias=often).tokens
    varied = model.generate("Hello", max_tokens=30, logit_bias=often, frequency_penalty=2.0).tokens
    assert same == [66] * 30 and varied.count(66) < 30


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
        ({"condition": None}, "condition is None, expected a string"),
        ({"temperature": "hot"}, "temperature is 'hot', expected 0"),
        ({"max_tokens": True}, "max_tokens is True, expected 1 or more"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected more than 0"),
        ({"presence_penalty": 3}, "presence_penalty is 3, expected -2 to 2"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty is inf"),
        ({"logit_bias": {5: float("nan")}}, "expected token ids with numbers, -100 to 100"),
        ({"logit_bias": {288: 1.0}}, "logit_bias has token 288, expected 0 to 287"),
        ({"stop": ""}, "stop is '', expected a string that is not empty"),
        ({"stop": ["a", 3]}, "expected a string that is not empty, or at most 16"),
        ({"logprobs": 21}, "logprobs is 21, expected 0"),
        ({"speculate": 1}, "speculate is 1, expected True or False"),
        ({"heat": 1}, "unknown option 'heat'; known are condition, max_tokens"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar are both given"),
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


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([6, 288], "not of 0 to 287"),
        ([-1], "not of 0"),
        ([6] * 256, "the prompt is 256 tokens long"),
    ],
)
def test_a_prompt_in_tokens_is_checked_as_well(model: Model, ids: list, message: str) -> None:
    with pytest.raises(HRMEdgeError, match=message):
        model.stream_ids(ids, Settings())


@pytest.mark.parametrize("context", [1, 257])
def test_a_context_outside_the_bundle_is_refused(shared_bundle: Path, context: int) -> None:
    with pytest.raises(HRMEdgeError, match=f"max_context is {context}, expected 2 to 256"):
        load(shared_bundle, max_context=context)


def test_a_context_larger_than_memory_is_refused(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1 << 16)
    with pytest.raises(HRMEdgeError, match="GiB for its KV cache"):
        load(shared_bundle, max_context=256)


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


def test_the_cache_is_committed_only_where_it_is_written(
    shared_bundle: Path, tmp_path: Path
) -> None:
    """With a context whose cache is far larger than whatever else the process allocates."""
    path = tmp_path / "bundle"
    shutil.copytree(shared_bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["max_seq_len"] = manifest["model"]["max_position_embeddings"] = 2**19
    (path / "manifest.json").write_text(json.dumps(manifest))
    before = memory.anonymous()
    model = load(path, threads=1, max_context=2**19)
    whole = model.manifest.kv_cache.bytes_per_token * model.session.max_context
    assert whole > 2**28
    model.session.prefill(list(range(14, 20)))
    after = memory.anonymous()
    assert before is not None and after is not None
    written = model.manifest.kv_cache.bytes_per_token * 6
    assert written < after - before < whole / 8
    assert np.isfinite(model.session.decode([15])).all()

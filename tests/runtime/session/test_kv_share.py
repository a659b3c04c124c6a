"""Passes that share cache slots: what the graph then computes, in numpy; memory; refusals."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hrm_edge.bundle import Bundle, KVCache
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.fit import need
from hrm_edge.runtime import load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import as_loaded, open_session
from references import Recurrence, prompt
from tiny_models import Shape, write_model

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
SHAPE = Shape(layers=2, H=2, L=3, seed=11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("share") / "model", SHAPE)


@pytest.fixture(scope="module")
def bundle(model: Path) -> Bundle:
    return export(model, model.with_name("float"), recipe=FLOAT, gate=None)


@pytest.fixture(scope="module")
def quantized(model: Path) -> Bundle:
    return export(model, model.with_name("int4"), gate=None)


@pytest.mark.parametrize("kv_share", ["none", "cycle", "stack"])
def test_the_graph_computes_what_sharing_means(model: Path, bundle: Bundle, kv_share: str) -> None:
    session = open_session(bundle, Loading(threads=1, kv_share=kv_share))
    reference = Recurrence(Checkpoint.open(model), kv_share)
    ids, answer = prompt(17, 0), prompt(6, 1)
    expected = [reference.call(ids)[-1], *(reference.call([token])[0] for token in answer)]
    found = [session.prefill(ids), *session.decode(answer)]  # one by one inside, where shared
    largest = np.abs(expected).max()
    assert np.abs(np.stack(found) - np.stack(expected)).max() < 1e-5 * largest


def test_sharing_changes_what_is_answered_and_nothing_in_the_prefix(bundle: Bundle) -> None:
    own, cycle, stack = (
        open_session(bundle, Loading(threads=1, kv_share=share))
        for share in ("none", "cycle", "stack")
    )
    ids = prompt(12, 2)
    first = [session.prefill(ids) for session in (own, cycle, stack)]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])
    later = [session.decode([20])[0] for session in (own, cycle, stack)]
    assert np.abs(later[0] - later[1]).max() > 0 and np.abs(later[1] - later[2]).max() > 0


def test_the_slots_of_three_passes_lie_in_the_last_ones_place() -> None:
    config = HRMTextConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, layers_per_stack=2,
        num_attention_heads=1, head_dim=16, H_cycles=2, L_cycles=3, max_position_embeddings=8,
        embedding_scale=1.0, initializer_range=1.0,
    )  # fmt: skip
    assert config.shared_slots("none") == tuple(range(16))
    assert config.shared_slots("cycle") == (4, 5) * 3 + (6, 7) + (12, 13) * 3 + (14, 15)
    assert config.shared_slots("stack") == (12, 13) * 3 + (6, 7) + (12, 13) * 3 + (14, 15)


@pytest.mark.parametrize(("kv_share", "share"), [("cycle", 1 / 2), ("stack", 3 / 8)])
def test_memory_is_that_of_the_slots_that_are_kept(
    quantized: Bundle, kv_share: str, share: float
) -> None:
    before = quantized.manifest.kv_cache.bytes_per_token
    shared = as_loaded(quantized, Loading(kv_share=kv_share)).manifest
    assert shared.kv_cache.bytes_per_token == before * share
    assert need(shared, 100).kv_cache == need(quantized.manifest, 100).kv_cache * share
    session = open_session(quantized, Loading(threads=1, max_context=64, kv_share=kv_share))
    session.prefill(prompt(10, 0))
    assert session.prefix_state()[1].size == 10 * before * share


def test_nothing_is_drafted_and_answers_repeat(quantized: Bundle) -> None:
    model = load(quantized, threads=1, kv_share="cycle")
    text = "ab ab ab ab ab ab"
    first = model.generate(text, max_tokens=20)
    assert first.stats.drafted == 0
    assert first.tokens == model.generate(text, max_tokens=20, speculate=False).tokens


def test_a_saved_prompt_goes_with_its_sharing(quantized: Bundle, tmp_path: Path) -> None:
    model = load(quantized, threads=1, kv_share="cycle")
    answer = model.generate("Hello", max_tokens=8).tokens
    model.save_prefix(tmp_path / "prefix")
    again = load(quantized, threads=1, kv_share="cycle")
    again.restore_prefix(tmp_path / "prefix")
    done = again.generate("Hello", max_tokens=8)
    assert (done.tokens, done.stats.cached_tokens) == (answer, done.stats.prompt_tokens)
    with pytest.raises(HRMEdgeError, match="made with --kv-share cycle, not none"):
        load(quantized, threads=1).restore_prefix(tmp_path / "prefix")


def test_slots_with_scales_of_their_own_cannot_be_shared(model: Path, tmp_path: Path) -> None:
    fitted = export(model, tmp_path / "fitted", kv_bits=4, gate=None)
    assert fitted.manifest.kv_cache.fitted
    with pytest.raises(HRMEdgeError, match=r"fitted to each slot.*--no-calibrate-kv"):
        load(fitted, kv_share="cycle")
    plain = export(model, tmp_path / "plain", kv_bits=4, calibrate_kv=False, gate=None)
    cache = plain.manifest.kv_cache
    assert not cache.fitted
    assert load(plain, threads=1, kv_share="stack").generate("Hi", max_tokens=3).tokens
    shared = KVCache.of(plain.manifest.model, 4, kv_share="stack").bytes_per_token
    assert shared == cache.bytes_per_token * 3 / 8


def test_from_the_command_line(
    run_cli: Callable[..., tuple[int, str, str]], quantized: Bundle
) -> None:
    code, out, _ = run_cli("generate", quantized.path, "Hi", "-n", 3, "--kv-share", "cycle")
    assert code == 0 and out
    code, out, _ = run_cli(
        "bench", quantized.path, "-p", 4, "-n", 2, "-r", 1, "--kv-share", "stack", "-o", "json"
    )
    assert code == 0 and '"kv_share": "stack"' in out
    _, out, _ = run_cli("inspect", quantized.path)
    total = quantized.manifest.kv_cache.bytes_per_token
    expected = f"cycle {total // 2:,}, stack {total * 3 // 8:,}"
    assert re.search(rf"kv bytes if shared +{expected}", out), out
    code, _, err = run_cli("generate", quantized.path, "Hi", "--kv-share", "cycle", "--h-cycles", 1)
    assert code == 1 and "give one of them" in err
    code, _, err = run_cli(
        "generate", quantized.path, "Hi", "--kv-share", "cycle", "--draft", "shallow"
    )
    assert code == 1 and "kv_share is cycle and draft shallow; give one of them" in err

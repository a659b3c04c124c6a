"""Fewer H cycles at run time, and the first of them as a drafter: what they compute is exact."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import HrmTextForCausalLM

from hrm_edge.bundle import Bundle, describe_files
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.model import KVCache
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import at_depth, open_session
from hrm_edge.runtime.speculation import Pace
from hrm_edge.training.weights import load_model
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

CYCLES = 3
FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
PROMPT, REST = list(range(20, 45)), [60, 61, 62, 63, 64]
PROMPTS = ["Hello", "abcabcabc", "1 2 3 1 2 3 1 2", "zq"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("depth") / "checkpoint", Shape(H=CYCLES, seed=4))


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> Bundle:
    """In float32 throughout, so that only rounding separates two ways to the same logits."""
    return export(checkpoint, checkpoint.parent / "exact", recipe=FLOAT)


def session(bundle: Bundle, h_cycles: int | None = None) -> OnnxSession:
    opened = open_session(bundle, Loading(threads=1, h_cycles=h_cycles))
    assert isinstance(opened, OnnxSession)
    return opened


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("h_cycles", [1, 2, 3])
def test_logits_are_those_of_a_model_that_has_so_many_cycles(
    checkpoint: Path, exact: Bundle, h_cycles: int
) -> None:
    theirs = HrmTextForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, H_cycles=h_cycles)
    types = torch.tensor([[1] * len(PROMPT) + [0] * len(REST)])
    with torch.no_grad():
        found = theirs.eval()(torch.tensor([PROMPT + REST]), token_type_ids=types, use_cache=False)
    expected = found.logits[0, len(PROMPT) - 1 :].numpy()
    onnx_session, ours = session(exact, h_cycles), load_model(checkpoint).eval()
    cache = KVCache(ours.config, 1, 64)
    with torch.no_grad():
        rows = [
            ours(torch.tensor([ids]), cache=cache, h_cycles=h_cycles)[0, -1].numpy()
            for ids in (PROMPT, *([token] for token in REST))
        ]
    assert_close(np.stack(rows), expected)
    assert_close(onnx_session.prefill(PROMPT), expected[0])
    assert_close(onnx_session.decode(REST[:1]), expected[1:2])
    assert_close(onnx_session.decode(REST[1:]), expected[2:])


def test_drafts_are_the_first_cycle_and_decode_goes_on_from_them(exact: Bundle) -> None:
    shallow, plain, drafting = session(exact, 1), session(exact), session(exact)
    for each in (shallow, plain, drafting):
        each.prefill(PROMPT)
    expected = plain.decode(REST)
    assert_close(drafting.draft(REST[:2]), shallow.decode(REST[:2]))
    assert_close(drafting.draft(REST[2:4]), shallow.decode(REST[2:4]))
    assert drafting.length == len(PROMPT)
    assert_close(drafting.decode(REST), expected)
    assert drafting.length == len(PROMPT) + len(REST)


@pytest.mark.parametrize("drafted", [[60], [60, 61, 62, 63, 64, 65], [60, 61, 99], [99, 61, 62]])
def test_only_drafts_that_the_call_begins_with_are_used(exact: Bundle, drafted: list[int]) -> None:
    plain, drafting = session(exact), session(exact)
    plain.prefill(PROMPT)
    drafting.prefill(PROMPT)
    expected = plain.decode(REST)
    drafting.draft(drafted)
    assert_close(drafting.decode(REST), expected)
    drafting.rewind(len(REST))
    assert_close(drafting.decode(REST), expected)


def test_a_rewind_and_a_new_prompt_forget_drafts(exact: Bundle) -> None:
    plain, drafting = session(exact), session(exact)
    plain.prefill(PROMPT[:-1])
    expected = plain.decode(REST)
    drafting.prefill(PROMPT)
    drafting.draft(REST)
    drafting.prefill(PROMPT[:-1])
    assert_close(drafting.decode(REST), expected)
    drafting.draft(REST)
    drafting.rewind(len(REST))
    assert_close(drafting.decode(REST), expected)
    drafting.draft(REST)
    drafting.start(PROMPT[:-1])
    assert_close(drafting.decode(REST), expected)


def test_the_states_are_what_spares_the_first_cycle(exact: Bundle) -> None:
    """Were they recomputed, states that are not the ids' own would change nothing."""
    drafting = session(exact)
    drafting.prefill(PROMPT)
    expected = drafting.decode(REST)
    drafting.rewind(len(REST))
    drafting.draft(REST)
    for state in drafting._drafted.states:
        state[:] = 0.5
    got = drafting.decode(REST)
    assert np.abs(got - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.fixture(scope="module", params=[1, 2, 4])
def models(request: pytest.FixtureRequest, exact: Bundle) -> tuple[Model, Model, int]:
    """(without drafts, drafting with its own first cycle, how many tokens at a time)."""
    plain = load(exact.path, threads=1)
    return plain, load(exact.path, threads=1, draft="self"), request.param


@pytest.mark.parametrize("prompt", PROMPTS)
def test_self_speculation_changes_no_greedy_answer(models, monkeypatch, prompt: str) -> None:
    plain, drafting, length = models
    monkeypatch.setattr(Pace, "length", lambda self, limit: min(length, limit))
    monkeypatch.setattr("hrm_edge.runtime.engine.lookups", lambda ids, learned: [])
    expected = plain.generate(prompt, max_tokens=60, speculate=False)
    done = drafting.generate(prompt, max_tokens=60)
    assert done.tokens == expected.tokens
    assert done.stats.drafted > 0
    assert done.stats.calls + done.stats.accepted == len(done.tokens) - 1


def test_self_speculation_beside_prompt_lookup_changes_no_sample(models, monkeypatch) -> None:
    plain, drafting, length = models
    monkeypatch.setattr(Pace, "length", lambda self, limit: min(length, limit))
    accepted = 0
    for seed in range(5):
        options = {"temperature": 0.6, "top_p": 0.95, "seed": seed, "max_tokens": 40}
        expected = plain.generate("abcabcabc", speculate=False, **options)
        done = drafting.generate("abcabcabc", **options)
        assert done.tokens == expected.tokens
        accepted += done.stats.accepted
    assert accepted > 0


def test_drafts_stop_at_the_end_of_the_context(exact: Bundle, monkeypatch) -> None:
    monkeypatch.setattr(Pace, "length", lambda self, limit: min(4, limit))
    plain = load(exact.path, threads=1, max_context=24)
    drafting = load(exact.path, threads=1, max_context=24, draft="self")
    expected = plain.generate("abc", max_tokens=99, speculate=False).tokens
    assert drafting.generate("abc", max_tokens=99).tokens == expected


def test_int4_bundles_run_at_any_depth_too(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "int4")
    answers = [
        load(bundle.path, threads=1, h_cycles=n).generate("Hello", max_tokens=12).tokens
        for n in (1, 2, 3, None)
    ]
    assert answers[2] == answers[3]
    assert len({tuple(tokens) for tokens in answers}) == 3


def test_fewer_cycles_need_less_cache(exact: Bundle) -> None:
    full = exact.manifest.kv_cache.bytes_per_token
    assert at_depth(exact, 1).manifest.kv_cache.bytes_per_token == full // CYCLES
    assert at_depth(exact, CYCLES) == at_depth(exact, None) == exact


def test_a_prefix_that_was_saved_at_another_depth_is_refused(exact: Bundle, tmp_path: Path) -> None:
    shallow = load(exact.path, threads=1, h_cycles=1)
    shallow.generate("Hello", max_tokens=1)
    shallow.save_prefix(tmp_path / "prefix")
    load(exact.path, threads=1, h_cycles=1).restore_prefix(tmp_path / "prefix")
    with pytest.raises(HRMEdgeError, match="made with another bundle"):
        load(exact.path, threads=1).restore_prefix(tmp_path / "prefix")


def fixed(bundle: Bundle, out: Path) -> Path:
    """`bundle` as it would be without the optional input: its graph runs every cycle."""
    out.mkdir()
    for file in bundle.path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    for value in [v for v in model.graph.input if v.name in ("h_cycles", "drafted_z_H")]:
        model.graph.input.remove(value)
    onnx.save(model, str(out / "model.onnx"))
    replace(bundle.manifest, files=describe_files(out)).write(out)
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h_cycles": 0}, r"h_cycles is 0, expected 1 to 3 \(the model's H_cycles\)"),
        ({"h_cycles": 4}, "h_cycles is 4, expected 1 to 3"),
        ({"h_cycles": 1, "draft": "self"}, "its first H cycle cannot draft"),
    ],
)
def test_a_depth_that_cannot_be_is_refused(exact: Bundle, options: dict, message: str) -> None:
    with pytest.raises(HRMEdgeError, match=message):
        load(exact.path, threads=1, **options)


def test_a_graph_of_fixed_depth_is_refused_in_one_line(exact: Bundle, tmp_path: Path) -> None:
    old = fixed(exact, tmp_path / "old")
    assert load(old, threads=1).generate("Hello", max_tokens=3).tokens
    with pytest.raises(HRMEdgeError, match="runs all 3 H cycles, not 2; export the checkpoint"):
        load(old, threads=1, h_cycles=2)
    with pytest.raises(HRMEdgeError, match="its first H cycle cannot draft"):
        load(old, threads=1, draft="self")


def test_the_command_line_takes_both(exact: Bundle, run_cli) -> None:
    shallow = load(exact.path, threads=1, h_cycles=1).generate("Hello", max_tokens=5)
    flags = ("-n", 5, "-t", 1)
    assert run_cli("generate", exact.path, "Hello", *flags, "--h-cycles", 1)[:2] == (
        0,
        shallow.text + "\n",
    )
    whole = load(exact.path, threads=1).generate("Hello", max_tokens=5)
    assert run_cli("generate", exact.path, "Hello", *flags, "--draft", "self")[:2] == (
        0,
        whole.text + "\n",
    )
    bench = ("bench", exact.path, "-p", 4, "-n", 2, "-r", 1, "-t", 1, "--h-cycles", 2, "-o", "json")
    code, out, _ = run_cli(*bench)
    assert code == 0 and '"h_cycles": 2' in out

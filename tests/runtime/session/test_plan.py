"""Fewer L passes a token, and few of them as a drafter: what the graph computes, and refusals."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

from hrm_edge.bundle import Bundle, describe_files
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import Model, engine, load
from hrm_edge.runtime.decoding.speculation import Pace
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import open_session
from references import Recurrence, prompt
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
SHAPES = [
    Shape(layers=2, H=2, L=3, seed=11),
    Shape(layers=1, H=1, L=2),
    Shape(layers=1, H=3, L=2, seed=5),
]
PROMPTS = ["Hello", "abcabcabc", "1 2 3 1 2 3 1 2", "zq"]
ALL = (False,) * 2 + (True,) * 2  # a cycle with one L pass of three, and its H pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plan") / "checkpoint", SHAPES[0])


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> Bundle:
    """In float32 throughout, so that only rounding separates two ways to the same logits."""
    return export(checkpoint, checkpoint.with_name("exact"), recipe=FLOAT, gate=None)


def opened(bundle: Bundle, **how: object) -> OnnxSession:
    session = open_session(bundle, Loading(threads=1, **how))  # type: ignore[arg-type]
    assert isinstance(session, OnnxSession)
    return session


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_which_passes_a_plan_runs(exact: Bundle) -> None:
    model = exact.manifest.model
    assert model.plan() == model.plan([3, 3]) == (True,) * 8
    assert model.plan([1, 1]) == ALL * 2
    assert model.plan([1, 2]) == (*ALL, False, True, True, True)
    assert model.plan(h_cycles=1) == (True,) * 4 + (False,) * 4
    assert model.plan([2], h_cycles=1) == (False, True, True, True) + (False,) * 4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_computes_every_plan(shape: Shape, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", shape)
    bundle = export(checkpoint, tmp_path / "bundle", recipe=FLOAT, gate=None)
    model, ids, answer = bundle.manifest.model, prompt(17, 0), prompt(5, 1)
    for kv_share in ("none", "cycle", "stack"):
        session = opened(bundle, kv_share=kv_share)
        for counts in product(range(1, model.L_cycles + 1), repeat=model.H_cycles):
            reference, plan = Recurrence(Checkpoint.open(checkpoint), kv_share), model.plan(counts)
            first = reference.call(ids)[-1]  # the prompt is read by all passes
            expected = [reference.call([token], plan)[0] for token in answer]
            assert_close(session.start(ids, counts), first)
            assert_close(session.decode(answer), np.stack(expected))


def test_a_plan_holds_until_the_next_start(exact: Bundle) -> None:
    session, plain = opened(exact), opened(exact)
    ids, answer = prompt(9, 3), prompt(4, 4)
    plain.prefill(ids)
    expected = plain.decode(answer)
    session.start(ids, [1, 2])
    fewer = session.decode(answer)
    assert np.abs(fewer - expected).max() > 1e-3 * np.abs(expected).max()
    session.start(ids)
    assert_close(session.decode(answer), expected)
    usual = opened(exact, l_cycles=(1, 2))
    usual.start(ids)
    assert_close(usual.decode(answer), fewer)
    usual.start(ids, [3, 3])
    assert_close(usual.decode(answer), expected)


def test_drafts_are_the_shallowest_plan_and_leave_nothing_behind(exact: Bundle) -> None:
    shallow, plain, drafting = opened(exact), opened(exact), opened(exact)
    ids, answer = prompt(9, 3), prompt(5, 4)
    shallow.start(ids, [1, 1])
    plain.prefill(ids)
    drafting.prefill(ids)
    assert_close(drafting.draft(answer[:2]), shallow.decode(answer[:2]))
    assert_close(drafting.draft(answer[2:4]), shallow.decode(answer[2:4]))
    assert drafting.length == len(ids)
    assert_close(drafting.decode(answer), plain.decode(answer))
    drafting.draft([99, 98])
    drafting.rewind(2)
    plain.rewind(2)
    assert_close(drafting.decode([50]), plain.decode([50]))


@pytest.fixture(scope="module", params=[1, 2, 4])
def models(request: pytest.FixtureRequest, exact: Bundle) -> tuple[Model, Model, int]:
    """(without drafts, drafting, how many tokens at a time)."""
    drafting = load(exact.path, threads=1, draft="shallow")
    return load(exact.path, threads=1), drafting, request.param


def always(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(Pace, "promise", lambda self, limit: (min(length, limit), 1.0))


def test_a_model_drafts_for_itself_by_default(exact: Bundle, monkeypatch) -> None:
    monkeypatch.setattr(engine, "_shallow", engine._shallow.__dict__["honest"])
    always(monkeypatch, 2)
    model = load(exact.path, threads=1)
    assert model.draft == "shallow"
    assert model.generate("zq", max_tokens=20).stats.drafted > 0
    assert load(exact.path, threads=1, kv_share="cycle").draft is None


@pytest.mark.parametrize("prompt", PROMPTS)
def test_shallow_drafts_change_no_greedy_answer(models, monkeypatch, prompt: str) -> None:
    plain, drafting, length = models
    always(monkeypatch, length)
    monkeypatch.setattr("hrm_edge.runtime.engine.lookups", lambda ids, learned: [])
    expected = plain.generate(prompt, max_tokens=60, speculate=False)
    done = drafting.generate(prompt, max_tokens=60)
    assert done.tokens == expected.tokens
    assert done.stats.drafted > 0
    assert done.stats.calls + done.stats.accepted == len(done.tokens) - 1


def test_shallow_drafts_beside_prompt_lookup_change_no_sample(models, monkeypatch) -> None:
    plain, drafting, length = models
    always(monkeypatch, length)
    accepted = 0
    for seed in range(5):
        options = {"temperature": 0.6, "top_p": 0.95, "seed": seed, "max_tokens": 40}
        expected = plain.generate("abcabcabc", speculate=False, **options)
        done = drafting.generate("abcabcabc", **options)
        assert done.tokens == expected.tokens
        accepted += done.stats.accepted
    assert accepted > 0


def test_drafts_stop_at_the_end_of_the_context_and_of_the_answer(
    exact: Bundle, monkeypatch
) -> None:
    always(monkeypatch, 4)
    model = load(exact.path, threads=1, max_context=24, draft="shallow")
    expected = model.generate("abc", max_tokens=99, speculate=False).tokens
    assert model.generate("abc", max_tokens=99).tokens == expected
    only = {"max_tokens": 30, "logit_bias": {exact.manifest.eos_token_ids[0]: 100.0}}
    assert len(model.generate("abc", **only).tokens) == 1


def test_a_plan_goes_with_drafts_of_its_own(exact: Bundle, monkeypatch) -> None:
    always(monkeypatch, 3)
    model = load(exact.path, threads=1, l_cycles=(2, 3), draft="shallow")
    expected = model.generate("abcabc", max_tokens=30, speculate=False)
    done = model.generate("abcabc", max_tokens=30)
    assert done.tokens == expected.tokens and done.stats.drafted > 0
    whole = load(exact.path, threads=1).generate("abcabc", max_tokens=30)
    assert model.generate("abcabc", max_tokens=30, l_cycles=[3, 3]).tokens == whole.tokens


def without_plan(bundle: Bundle, out: Path) -> Path:
    """`bundle` as older ones are: its graph runs every pass."""
    out.mkdir()
    for file in bundle.path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    (value,) = [v for v in model.graph.input if v.name == "passes"]
    model.graph.input.remove(value)
    onnx.save(model, str(out / "model.onnx"))
    replace(bundle.manifest, files=describe_files(out)).write(out)
    return out


@pytest.mark.parametrize("plan", [(1,), (1, 2, 3), (0, 1), (1, 4)])
def test_a_plan_that_cannot_be_is_refused(exact: Bundle, plan: tuple[int, ...]) -> None:
    says = "l_cycles is .*, expected 2 of 1 to 3, one number for each H cycle"
    with pytest.raises(HRMEdgeError, match=says):
        load(exact.path, threads=1, l_cycles=plan)
    with pytest.raises(HRMEdgeError, match="l_cycles is"):
        load(exact.path, threads=1).generate("Hi", l_cycles=plan)


def test_what_cannot_leave_passes_out_says_so(exact: Bundle, tmp_path: Path) -> None:
    old = without_plan(exact, tmp_path / "old")
    model = load(old, threads=1)
    assert model.generate("Hello", max_tokens=3).tokens
    with pytest.raises(HRMEdgeError, match="runs all 8 passes, not 6 of them; export the checkp"):
        load(old, threads=1, l_cycles=(2, 2))
    with pytest.raises(HRMEdgeError, match="runs all 8 passes, not 5 of them"):
        model.generate("Hello", l_cycles=[1, 2])
    with pytest.raises(HRMEdgeError, match="it cannot draft with fewer passes"):
        load(old, threads=1, draft="shallow")
    single = write_model(tmp_path / "single", Shape(layers=1, H=2, L=1))
    bundle = export(single, tmp_path / "bundle", gate=None)
    with pytest.raises(HRMEdgeError, match="it cannot draft with fewer passes"):
        load(bundle, threads=1, draft="shallow")
    assert load(bundle, threads=1).generate("Hello", max_tokens=3).tokens


def test_from_the_command_line(run_cli: Callable[..., tuple[int, str, str]], exact: Bundle) -> None:
    flags = ("generate", exact.path, "Hello", "-n", 8, "-t", 1)
    fewer = load(exact.path, threads=1, l_cycles=(1, 2)).generate("Hello", max_tokens=8)
    assert run_cli(*flags, "--l-cycles", "1,2")[:2] == (0, fewer.text + "\n")
    whole = load(exact.path, threads=1).generate("Hello", max_tokens=8)
    assert fewer.text != whole.text
    assert run_cli(*flags, "--draft", "shallow")[:2] == (0, whole.text + "\n")
    bench = ("bench", exact.path, "-p", 4, "-n", 2, "-r", 1, "-t", 1, "-o", "json")
    code, out, _ = run_cli(*bench, "--l-cycles", "1,2")
    assert code == 0 and '"l_cycles": "1,2"' in out
    code, _, err = run_cli(*flags, "--l-cycles", "1")
    assert code == 1 and err.count("\n") == 1 and "l_cycles is 1, expected 2 of 1 to 3" in err
    assert run_cli(*flags, "--l-cycles", "1;2")[0] == 2

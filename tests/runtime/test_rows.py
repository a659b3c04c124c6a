"""Many answers in the rows of one model: each as if it were alone, whoever comes and goes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hrm_edge import fit, memory
from hrm_edge.bundle import Bundle, describe_files
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import Completion, Model, load
from hrm_edge.runtime.decoding.answer import Answer
from hrm_edge.runtime.decoding.rows import together
from hrm_edge.runtime.session.kv_cache import DeviceBuffers
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.settings import Settings
from tiny_models import Shape, write_model

SHAPE = Shape(layers=2, H=2, L=3)
PROMPTS = ["Hi", "A longer one, of many letters", "x", "Say it again, and then once more", "ab"]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float32 throughout: kernels that add up in another order change no token."""
    path = tmp_path_factory.mktemp("rows")
    recipe = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    return export(write_model(path / "m", SHAPE), path / "b", recipe=recipe, gate=None).path


def asked(model: Model, options: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Answer]]:
    for i, each in enumerate(options):
        settings = Settings.of({"speculate": False} | each)
        yield i, model.answer(model.encode(PROMPTS[i % len(PROMPTS)], "direct"), settings)


def tokens(model: Model, options: Sequence[dict[str, Any]]) -> dict[int, list[int] | str]:
    found: dict[int, list[int] | str] = {}
    for i, done in together(model.rows, asked(model, options)):
        found[i] = done.tokens if isinstance(done, Completion) else str(done)
    return dict(sorted(found.items()))


MIXED = [  # lengths, so that rows are left at different times; plans; a sample; a constraint
    {"max_tokens": 5},
    {"max_tokens": 30},
    {"max_tokens": 12, "l_cycles": [1, 2]},
    {"max_tokens": 20, "temperature": 1.0, "seed": 3},
    {"max_tokens": 9, "l_cycles": [1, 2]},
    {"max_tokens": 25, "regex": "[a-f]{4,20}"},
    {"max_tokens": 7, "repetition_penalty": 1.5},
    {"max_tokens": 16},
]


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_answers_are_those_of_a_row_alone(exact: Path, rows: int) -> None:
    alone = tokens(load(exact, threads=1, max_context=64), MIXED)
    assert tokens(load(exact, threads=1, max_context=64, rows=rows), MIXED) == alone
    lengths = [len(found) for found in alone.values()]
    assert lengths[:5] == [5, 30, 12, 20, 9] and lengths[6:] == [7, 16]


def test_passes_may_share_slots(exact: Path) -> None:
    how: Any = {"threads": 1, "max_context": 64, "kv_share": "cycle"}
    assert tokens(load(exact, **how, rows=3), MIXED) == tokens(load(exact, **how), MIXED)


def test_an_answer_drafts_while_it_is_alone(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hrm_edge.runtime.decoding.speculation import Pace

    monkeypatch.setattr(Pace, "promise", lambda self, limit: (min(3, limit), 1.0))
    options = [{"max_tokens": 4, "speculate": True}, {"max_tokens": 40, "speculate": True}]
    plain = tokens(load(exact, threads=1), [o | {"speculate": False} for o in options])
    model = load(exact, threads=1, rows=2, draft="shallow")
    done = dict(together(model.rows, asked(model, options)))
    assert {i: getattr(c, "tokens", c) for i, c in sorted(done.items())} == plain
    drafted = [c.stats.drafted for _, c in sorted(done.items()) if isinstance(c, Completion)]
    assert drafted[1] > drafted[0], "the short answer had company"


def test_a_row_fails_alone(exact: Path) -> None:
    model = load(exact, threads=1, rows=2, max_context=64)
    options = [{"max_tokens": 9}, {"max_tokens": 9, "regex": "(a{1000}){1000}"}, {"max_tokens": 9}]
    found = tokens(model, options)
    assert "the constraint failed" in str(found.pop(1))
    alone = tokens(load(exact, threads=1, max_context=64), options)
    alone.pop(1)
    assert found == alone and model.rows.free == 2


def test_a_call_that_fails_ends_what_was_in_it(exact: Path) -> None:
    model = load(exact, threads=1, rows=2, max_context=64)
    session: Any = model.session
    seats = [model.rows.join(answer) for _, answer in asked(model, [{"max_tokens": 20}] * 2)]
    pieces = [item for _ in range(3) for _, item in model.rows.step()]
    assert len(pieces) == 2 + 3 + 2, "one prompt a step"
    session._model.call = None
    assert [type(item) for _, item in model.rows.step()] == [TypeError] * 2
    assert all(seat.ended for seat in seats) and model.rows.free == 2


def test_a_prompt_that_a_row_holds_is_not_read_again(exact: Path) -> None:
    model = load(exact, threads=1, rows=3, max_context=64)
    options = [{"max_tokens": 3}] * 3
    first = dict(together(model.rows, asked(model, options)))
    second = dict(together(model.rows, reversed(list(asked(model, options)))))
    for i, done in second.items():
        before = first[i]
        assert isinstance(done, Completion) and isinstance(before, Completion)
        assert before.stats.cached_tokens == 0 < done.stats.cached_tokens
        assert done.tokens == before.tokens


def test_an_abandoned_round_leaves_its_rows(exact: Path) -> None:
    model = load(exact, threads=1, rows=2, max_context=64)
    running = together(model.rows, asked(model, MIXED))
    next(running)
    assert model.rows.free < 2
    running.close()  # type: ignore[attr-defined]
    assert model.rows.free == 2 and not model.rows.seats


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_quantized_rows_are_close_to_one(tmp_path: Path, kv_bits: int) -> None:
    path = export(write_model(tmp_path / "m", SHAPE), tmp_path / "b", kv_bits=kv_bits).path
    first = load(path, threads=1, rows=3, max_context=64)
    rows: Any = first.rows.sessions
    one = load(path, threads=1, max_context=64).session
    prompts = [list(range(20, 20 + n)) for n in (3, 9, 30)]
    for row, ids in zip(rows, prompts, strict=True):
        row.start(ids)
    for token in (40, 41):
        together_now = first.session.decode_rows([rows[2], rows[0], rows[1]], [token] * 3)
        expected = []
        for ids in (prompts[2], prompts[0], prompts[1]):
            one.start(ids)
            expected.append([one.decode([earlier])[-1] for earlier in range(40, token + 1)][-1])
        scale = np.abs(expected).max()
        assert np.abs(together_now - np.stack(expected)).max() < 0.05 * scale


def test_rows_move_within_the_buffers_of_a_device(
    exact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hrm_edge.runtime.session import kv_cache

    host = tokens(load(exact, threads=1, rows=3, max_context=64), MIXED)
    monkeypatch.setattr(kv_cache, "HostBuffers", lambda layouts: DeviceBuffers(layouts, "cpu"))
    assert tokens(load(exact, threads=1, rows=3, max_context=64), MIXED) == host


def test_rows_take_memory(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.open(exact).manifest
    one, four = (fit.need(manifest, 100, rows) for rows in (1, 4))
    assert four.kv_cache == 4 * one.kv_cache and four.weights == one.weights
    room = one.total + one.kv_cache // 2
    monkeypatch.setattr(memory, "available", lambda: room)
    assert load(exact, threads=1, max_context=100).session.max_context == 100
    assert load(exact, threads=1, rows=4).session.max_context < 100
    with pytest.raises(HRMEdgeError, match=r"fit|needs about"):
        load(exact, threads=1, rows=64, max_context=100, strict=True)
    monkeypatch.setattr(memory, "available", lambda: one.weights)
    with pytest.raises(HRMEdgeError, match="4 rows do not fit into memory; use fewer"):
        load(exact, threads=1, rows=4)
    monkeypatch.setattr(memory, "available", lambda: manifest.kv_cache.bytes_per_token * 300)
    with pytest.raises(HRMEdgeError, match=r"max_context 100 in 4 rows needs .* at most 75 fit"):
        load(exact, threads=1, rows=4, max_context=100)


def test_a_bundle_of_one_row_is_refused_more(exact: Path, tmp_path: Path) -> None:
    """As exported before graphs had rows."""
    bundle = Bundle.open(exact)
    graph = onnx.load(str(exact / "model.onnx"), load_external_data=False)
    for value in [*graph.graph.input, *graph.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "rows":
                dim.dim_value = 1
    for file in exact.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = bundle.manifest
    replace(manifest, files=describe_files(tmp_path)).write(tmp_path)
    assert load(tmp_path, threads=1).generate("Hi", max_tokens=3).tokens
    with pytest.raises(HRMEdgeError, match="its graph has one row, not 2; export"):
        load(tmp_path, threads=1, rows=2)
    with pytest.raises(HRMEdgeError, match=r"rows \(--parallel\) is 65, expected 1 to 64"):
        load(exact, rows=65)


def test_so_many_rows_as_pay(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hrm_edge.runtime.session import opening

    def count(gain: float) -> int:
        monkeypatch.setattr(opening, "_rate", lambda rows: gain ** len(rows))
        return load(exact, threads=1, rows=None, max_context=64).rows.count

    assert count(1.5) == opening.PAYING[-1] and count(1.01) == 1
    manifest = Bundle.open(exact).manifest
    monkeypatch.setattr(memory, "available", lambda: fit.need(manifest, 64, 3).total)
    assert count(1.5) == 2
    monkeypatch.undo()
    assert load(exact, threads=1, rows=None, max_context=64).generate("Hi", max_tokens=2).tokens


def test_a_model_is_freed_when_it_is_dropped(exact: Path) -> None:
    import gc
    import weakref

    gc.disable()
    try:
        model = load(exact, threads=1, rows=2, max_context=64)
        session: Any = model.session
        assert isinstance(session, OnnxSession)
        gone = weakref.ref(session._model)
        del model, session
        assert gone() is None
    finally:
        gc.enable()

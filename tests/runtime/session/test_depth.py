"""Fewer H cycles at run time: what they compute is exact."""

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
from hrm_edge.runtime import load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import at_depth, open_session
from hrm_edge.training.weights import load_model
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

CYCLES = 3
FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
PROMPT, REST = list(range(20, 45)), [60, 61, 62, 63, 64]


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
            ours(torch.tensor([ids]), cache=cache, plan=ours.config.plan(h_cycles=h_cycles))[
                0, -1
            ].numpy()
            for ids in (PROMPT, *([token] for token in REST))
        ]
    assert_close(np.stack(rows), expected)
    assert_close(onnx_session.prefill(PROMPT), expected[0])
    assert_close(onnx_session.decode(REST[:1]), expected[1:2])
    assert_close(onnx_session.decode(REST[1:]), expected[2:])


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
    for value in [v for v in model.graph.input if v.name in ("passes",)]:
        model.graph.input.remove(value)
    onnx.save(model, str(out / "model.onnx"))
    replace(bundle.manifest, files=describe_files(out)).write(out)
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h_cycles": 0}, r"h_cycles is 0, expected 1 to 3 \(the model's H_cycles\)"),
        ({"h_cycles": 4}, "h_cycles is 4, expected 1 to 3"),
    ],
)
def test_a_depth_that_cannot_be_is_refused(exact: Bundle, options: dict, message: str) -> None:
    with pytest.raises(HRMEdgeError, match=message):
        load(exact.path, threads=1, **options)


def test_a_graph_of_fixed_depth_is_refused_in_one_line(exact: Bundle, tmp_path: Path) -> None:
    old = fixed(exact, tmp_path / "old")
    assert load(old, threads=1).generate("Hello", max_tokens=3).tokens
    with pytest.raises(HRMEdgeError, match="runs all 9 passes, not 6 of them; export the checkp"):
        load(old, threads=1, h_cycles=2)


def test_the_command_line_takes_it(exact: Bundle, run_cli) -> None:
    shallow = load(exact.path, threads=1, h_cycles=1).generate("Hello", max_tokens=5)
    flags = ("-n", 5, "-t", 1)
    assert run_cli("generate", exact.path, "Hello", *flags, "--h-cycles", 1)[:2] == (
        0,
        shallow.text + "\n",
    )
    bench = ("bench", exact.path, "-p", 4, "-n", 2, "-r", 1, "-t", 1, "--h-cycles", 2, "-o", "json")
    code, out, _ = run_cli(*bench)
    assert code == 0 and '"h_cycles": 2' in out

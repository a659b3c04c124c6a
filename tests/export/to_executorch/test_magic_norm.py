"""The C++ op hrm::magic_norm, built as a user builds it: in torch, traced, and in a bundle."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.export.to_executorch.magic_norm_op import SOURCE, build, load
from hrm_edge.pte import LIBRARY
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from references import load_reference, prompt, relative
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

EPS = 1e-6
WIDTH = 1536  # 64 rows of it are shared out among threads


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The op, compiled here and now."""
    out = tmp_path_factory.mktemp("op") / "libmagic_norm.so"
    build(out)
    return out


@pytest.fixture(scope="module")
def op(library: Path) -> Any:
    return load(library)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose norms are calls of the op, beside its `model` and the `default` bundle."""
    root = tmp_path_factory.mktemp("bundles")
    model = write_model(root / "model", Shape(layers=2, heads=3, L=3))
    recipe = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    export(model, root / "default", "executorch", recipe=recipe, gate=None)
    return export(model, root / "op", "executorch", recipe=recipe, norm_op=True, gate=None).path


def by_numpy(x: np.ndarray, skip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    residual = (x + skip).astype(np.float64)
    return residual / np.sqrt(np.square(residual).mean(-1, keepdims=True) + EPS), residual


@pytest.mark.parametrize("shape", [(1, 7, 1536), (1, 64, 96), (3, 5), (33,), (1, 0, 16)])
def test_the_op_equals_numpy(op: Any, shape: tuple[int, ...]) -> None:
    pick = np.random.default_rng(0)
    x, skip = (pick.standard_normal(shape, np.float32) for _ in range(2))
    rows = [x] if x.size == 0 else [x, x.reshape(-1, shape[-1])[0]]  # one row is added to all
    for left in rows:
        found = op(torch.from_numpy(left), torch.from_numpy(skip), EPS)
        for got, expected in zip(found, by_numpy(left, skip), strict=True):
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_the_op_does_not_take_is_refused(op: Any) -> None:
    x = torch.ones(1, 4, 8)
    for bad in (x.double(), torch.ones(1, 4, 6), torch.ones(1, 3, 8), torch.tensor(1.0)):
        with pytest.raises(RuntimeError, match="hrm::magic_norm"):
            op(bad, x, EPS)


class Twice(torch.nn.Module):
    """Calls the op on what it has computed, and computes with both results."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        normed, residual = self.op(2 * x, skip, EPS)
        return normed + self.op(normed, residual, EPS)[0]


def test_the_op_is_traced_and_runs_in_executorch(op: Any, tmp_path: Path) -> None:
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    x, skip = (torch.randn(1, 5, WIDTH) for _ in range(2))
    torch.library.opcheck(op.default, (x, skip, EPS))  # the meta kernel among others
    tokens = {1: torch.export.Dim("tokens", min=1, max=64)}
    program = torch.export.export(
        Twice(op), (x, skip), dynamic_shapes={"x": tokens, "skip": tokens}
    )
    assert sum(node.target is op.default for node in program.graph.nodes) == 2
    file = tmp_path / "op.pte"
    file.write_bytes(to_edge(program).to_executorch().buffer)
    method = Runtime.get().load_program(file).load_method("forward")
    assert method is not None
    for count in (5, 64, 1):
        x, skip = (torch.randn(1, count, WIDTH) for _ in range(2))
        torch.testing.assert_close(method.execute((x, skip))[0], Twice(op)(x, skip))


def test_a_bundle_with_the_op_equals_the_default_and_transformers(
    bundle: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARY, str(library))
    ours, default = (
        open_session(Bundle.open(path), Loading(threads=2))
        for path in (bundle, bundle.with_name("default"))
    )
    reference = load_reference(bundle.with_name("model"))
    for length in (1, 100, 20):
        sequence = prompt(length, length)
        logits, expected = ours.prefill(sequence), default.prefill(sequence)
        for _ in range(8):
            assert relative(expected, logits) < 1e-5
            assert relative(reference.logits(sequence, length)[0], logits) < 1e-5
            assert logits.argmax() == expected.argmax()
            token = int(logits.argmax())
            sequence.append(token)
            logits, expected = ours.decode([token])[0], default.decode([token])[0]


def test_a_missing_library_is_named(
    bundle: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIBRARY, raising=False)
    command = [sys.executable, "-m", "hrm_edge", "generate", str(bundle), "Hi"]
    done = subprocess.run(command, capture_output=True, text=True)  # where nothing is registered
    assert (done.returncode, done.stdout) == (1, "")
    assert "hrm::magic_norm.out is missing; build its library (python -m " in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    monkeypatch.setenv(LIBRARY, "no.so")
    code, out, error = run_cli("generate", bundle, "Hi")
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "HRM_EDGE_OPERATORS is 'no.so', which cannot be loaded: " in error


def test_a_missing_or_failing_compiler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(HRMEdgeError, match=r"no-such-compiler: no such C\+\+ compiler"):
        build(tmp_path / "a.so")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("CXXFLAGS", "-no-such-option")
    with pytest.raises(HRMEdgeError, match=r"g\+\+ cannot build magic_norm\.cpp: .*no-such-option"):
        build(tmp_path / "a.so")


def test_an_application_compiles_the_op_without_torch() -> None:
    import executorch

    headers = Path(executorch.__path__[0]) / "include"
    own = headers / "executorch/runtime/core/portable_type/c10"  # ExecuTorch's copy of c10
    options = ["-std=c++17", "-fsyntax-only", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    command = ["g++", *options, f"-I{headers}", f"-I{own}", SOURCE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_executorch_has_the_op(
    run_cli: Callable[..., tuple[int, str, str]], shared_checkpoint: Path, tmp_path: Path
) -> None:
    given = ("export", shared_checkpoint, "-o", tmp_path / "b", "--norm-op")
    assert run_cli(*given) == (
        1,
        "",
        "Error: --norm-op does not apply to -t onnx; it is of -t executorch\n",
    )

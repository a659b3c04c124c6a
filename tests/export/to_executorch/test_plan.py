"""Programs that share cache slots, or run fewer passes behind the prefix."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrm_edge.bundle import Bundle
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.fit import need
from hrm_edge.prompt import format_prompt
from hrm_edge.runtime import load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from pte_running import ROWS, RUNNER, run_cli, run_python
from references import Recurrence, prompt
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
TINY = Path(__file__).parents[3] / "hrm_edge" / "data" / "hrm_tiny"
WAYS = [("none", (1, 2)), ("cycle", None), ("cycle", (2, 2)), ("stack", (1, 1))]


@pytest.mark.parametrize(("kv_share", "l_cycles"), WAYS)
def test_the_program_computes_it(
    tmp_path: Path, kv_share: str, l_cycles: tuple[int, ...] | None
) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", Shape(layers=2, H=2, L=3, seed=11))
    options = {"kv_share": kv_share, "l_cycles": l_cycles}
    bundle = export(checkpoint, tmp_path / "bundle", "executorch", recipe=FLOAT, **options)
    session = open_session(bundle, Loading(threads=1))
    plan = bundle.manifest.model.plan(l_cycles)
    for turn in range(2):  # a second prompt after the jump behind the first
        reference = Recurrence(Checkpoint.open(checkpoint), kv_share)
        ids, answer = prompt(11 - 4 * turn, turn), prompt(5, 5 + turn)
        first = reference.call(ids)[-1]
        expected = [first, *(reference.call([token], plan)[0] for token in answer)]
        found = [session.prefill(ids), *session.decode(answer)]
        largest = np.abs(expected).max()
        assert np.abs(np.stack(found) - np.stack(expected)).max() < 1e-5 * largest


def test_a_shared_cache_is_half_as_large(tmp_path: Path) -> None:
    own, shared = (
        export(TINY, tmp_path / share, "executorch", kv_share=share, gate=None)
        for share in ("none", "cycle")
    )
    assert need(shared.manifest, 512).kv_cache == need(own.manifest, 512).kv_cache / 2
    assert (shared.manifest.decoding.kv_share, own.manifest.decoding.kv_share) == ("cycle", "none")
    again = Bundle.open(shared.path).manifest
    assert again == shared.manifest
    sizes = [_states(bundle.path / "model.pte") for bundle in (own, shared)]
    assert sizes[1] < 0.51 * sizes[0]


def _states(path: Path) -> int:
    """Bytes that the program keeps between calls."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    (plan,) = [p for p in program.execution_plan if p.name == "forward"]
    return plan.non_const_buffer_sizes[2]


def test_the_stock_runner_runs_them(tmp_path: Path) -> None:
    options = {"kv_share": "cycle", "l_cycles": (2, 2)}
    bundle = export(TINY, tmp_path / "fast", "executorch", gate=None, **options)
    model = load(bundle, threads=1)
    expected = [model.generate(row["instruction"], max_tokens=40) for row in ROWS]
    prompts = [format_prompt(row["instruction"]) for row in ROWS]
    done = run_python(RUNNER, bundle.path, json.dumps(prompts))
    found = json.loads(done.stdout.splitlines()[-1])
    end = "<|box_end|>"
    assert [text.partition(end)[0] for text in found] == [done.text for done in expected]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    targets: list[tuple[str, dict[str, Any], str]] = [
        ("executorch", {"l_cycles": (1,)}, "l_cycles is 1, expected 2 of 1 to 3"),
        ("executorch", {"kv_share": "all"}, "kv_share is 'all', expected one of none, cycle"),
        ("onnx", {"kv_share": "cycle"}, "is of -t executorch; an ONNX bundle takes it when it is"),
        ("gguf", {"l_cycles": (1, 2)}, "l_cycles does not apply to -t gguf"),
    ]
    for target, options, says in targets:
        with pytest.raises(HRMEdgeError, match=says):
            export(TINY, tmp_path / "no", target, **options)
        assert not (tmp_path / "no").exists()
    bundle = export(TINY, tmp_path / "fast", "executorch", kv_share="cycle", gate=None)
    asked: list[tuple[dict[str, Any], str]] = [
        ({"l_cycles": (2, 2)}, "leave out --l-cycles, or export with -t onnx"),
        ({"fast": True}, "leave out --fast"),
    ]
    for options, says in asked:
        with pytest.raises(HRMEdgeError, match=says):
            load(bundle, **options)
    with pytest.raises(HRMEdgeError, match="an ExecuTorch bundle runs all of its passes"):
        load(bundle).generate("Hi", l_cycles=[2, 2])


def test_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    flags = ("--kv-share", "cycle", "--l-cycles", "2,2", "--no-report")
    done = run_cli("export", TINY, "-o", out, "-t", "executorch", *flags)
    assert done.returncode == 0, done.stderr
    decoding = Bundle.open(out).manifest.decoding
    assert (decoding.l_cycles, decoding.kv_share) == ((2, 2), "cycle")
    shown = run_cli("inspect", out).stdout
    assert re.search(r"answers read by +l_cycles 2,2, kv_share cycle", shown), shown

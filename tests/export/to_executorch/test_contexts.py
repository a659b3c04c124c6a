"""Several context lengths from one export: programs over shared weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge import memory
from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.fit import need
from hrm_edge.prompt import format_prompt
from hrm_edge.runtime import load
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session
from pte_running import ROWS, RUNNER, run_cli, run_python
from references import prompt

pytestmark = pytest.mark.slow

CONTEXTS = [64, 128]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(SHIPPED, tmp_path_factory.mktemp("one") / "b", "executorch", gate=None).path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "b"
    return export(SHIPPED, out, "executorch", contexts=CONTEXTS, gate=None).path


def test_weights_are_stored_once(one: Path, several: Path) -> None:
    sizes = {name: file.size for name, file in Bundle.open(several).manifest.files.items()}
    programs = {"model.pte", "model-64.pte", "model-128.pte"}
    assert {name for name in sizes if "model" in name} == programs | {"model.ptd"}
    alone = Bundle.open(one).manifest.files["model.pte"].size
    assert sizes["model.ptd"] < 1.05 * alone
    assert all(sizes[name] < 0.1 * alone for name in programs)


@pytest.mark.parametrize(("asked", "loaded"), [(40, 64), (64, 64), (65, 128), (200, 512)])
def test_the_shortest_program_that_is_long_enough_is_loaded(
    one: Path, several: Path, asked: int, loaded: int
) -> None:
    assert Bundle.open(several).manifest.context_for(asked) == loaded
    sessions = [
        open_session(Bundle.open(path), Loading(threads=1, max_context=asked))
        for path in (one, several)
    ]
    for ids in (prompt(20, 0), prompt(9, 1)):
        expected, found = (session.prefill(ids) for session in sessions)
        np.testing.assert_array_equal(found, expected)
        expected, found = (session.decode([20, 30, 40]) for session in sessions)
        np.testing.assert_array_equal(found, expected)


COMMITTED = """
import sys
from hrm_edge import memory
from hrm_edge.runtime import load
from hrm_edge.fit import need
model = load(sys.argv[1], threads=1, max_context=int(sys.argv[2]))
model.generate("Count.", max_tokens=2)
print(memory.anonymous())
"""


def test_a_short_context_commits_a_short_cache(tmp_path: Path) -> None:
    long = shutil.copytree(SHIPPED, tmp_path / "long")
    config = json.loads((long / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (long / "config.json").write_text(json.dumps(config))
    bundle = export(long, tmp_path / "b", "executorch", contexts=[64], gate=None)
    spared = bundle.manifest.kv_cache.bytes_per_token * (8192 - 64)
    assert spared > 100 << 20
    few, many = (
        int(run_python(COMMITTED, bundle.path, n).stdout.splitlines()[-1]) for n in (64, 8192)
    )
    assert many - few > 0.95 * spared  # what calls compute in is smaller too


def test_without_a_wish_the_longest_that_fits_is_loaded(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(several).session.max_context == 512
    manifest = Bundle.open(several).manifest
    room = need(manifest, 200).total
    monkeypatch.setattr(memory, "available", lambda: room)
    assert load(several).session.max_context == 128
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(HRMEdgeError, match=r"max_context 64 needs .* GiB.*--context at export"):
        load(several)


def test_the_stock_runner_takes_program_and_weights(several: Path) -> None:
    rows = ROWS[:3]
    model = load(several, max_context=128)
    ours = [model.generate(row["instruction"], max_tokens=40).text for row in rows]
    code = RUNNER.replace(
        'f"{sys.argv[1]}/model.pte", f"{sys.argv[1]}/tokenizer.json"',
        '*(f"{sys.argv[1]}/{n}" for n in ("model-128.pte", "tokenizer.json", "model.ptd"))',
    )
    assert code != RUNNER
    done = run_python(code, several, json.dumps([format_prompt(r["instruction"]) for r in rows]))
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert [text.removesuffix("<|box_end|>") for text in theirs] == ours


@pytest.mark.parametrize(
    ("target", "contexts", "complaint"),
    [
        (
            "executorch",
            [64, 512],
            "contexts are 64, 512, expected 2 to 511 (less than max_seq_len)",
        ),
        ("executorch", [1], "contexts are 1, expected 2 to 511"),
        ("onnx", [64], "contexts does not apply to -t onnx; it is of -t executorch"),
    ],
)
def test_impossible_contexts_are_refused(
    tmp_path: Path, target: str, contexts: list[int], complaint: str
) -> None:
    with pytest.raises(HRMEdgeError, match=re.escape(complaint)):
        export(SHIPPED, tmp_path / "out", target, contexts=contexts)
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "b"
    options = ("-t", "executorch", "--context", 64, "--no-report")
    done = run_cli("export", SHIPPED, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    (out / "model.ptd").write_bytes(b"cut")
    done = run_cli("generate", out, "Hi")
    assert done.returncode == 1 and "model.ptd: 3 bytes, the manifest says" in done.stderr

"""The golden vectors are those that the shipped model gives today."""

import json
from pathlib import Path

import pytest

from benchmarks.engines import RUNTIMES
from benchmarks.golden import COUNT, MARGIN, WAYS, make_golden
from hrm_edge.export import export

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[2] / "android_demo" / "golden.json"


def test_the_python_runtime_gives_the_golden_vectors() -> None:
    kept, made = json.loads(GOLDEN.read_text(encoding="utf-8")), make_golden()
    assert kept["checkpoint_sha256"] == made["checkpoint_sha256"], made["made_by"]
    assert len(kept["vectors"]) == len(made["vectors"]) == COUNT
    for old, new in zip(kept["vectors"], made["vectors"], strict=True):
        fields = ("prompt", "condition", "ids", "answers")
        assert {f: old[f] for f in fields} == {f: new[f] for f in fields}


def test_golden_vectors_are_varied_and_not_near_ties() -> None:
    vectors = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]
    assert all(vector["margin"] >= MARGIN for vector in vectors)
    assert all(set(vector["answers"]) == WAYS.keys() for vector in vectors)
    for way in ("8, l_cycles 1,1", "8, kv_share stack"):
        assert sum(v["answers"][way] != v["answers"]["8"] for v in vectors) >= 5
    assert len({tuple(vector["answers"]["32"]) for vector in vectors}) > COUNT // 2


@pytest.mark.parametrize("bits", [32, 8])
def test_stock_onnxruntime_genai_gives_them_too(bits: int, tmp_path: Path) -> None:
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))
    shipped = GOLDEN.parent.parent / "hrm_edge" / "data" / "hrm_tiny"
    bundle = export(shipped, tmp_path / "b", kv_bits=bits, gate=None)
    genai = RUNTIMES["onnxruntime-genai"](bundle.path, 512, 1)
    for vector in kept["vectors"]:
        wanted, found = vector["answers"][str(bits)], []
        logits = genai.prefill(vector["ids"])
        for _ in wanted:
            found.append(int(logits.argmax()))
            logits = genai.decode(found[-1:])[-1]
        assert found == wanted, vector["prompt"]

"""Golden vectors: what the Python runtime answers, for every other runtime of the same bundle.

python -m benchmarks.golden -o android_demo/golden.json

hrm-tiny's bundles with a KV cache of 32 and of 8 bits answer questions greedily, one token a call.
The app's tests, the browser, Node and an emulated aarch64 must give the same tokens. Kernels round
differently from one processor to the next, so questions are skipped whose answer hangs on less than
MARGIN: `margin` is the least distance, in logits, between the likeliest token and the next. Where
a runtime differs from these vectors it is wrong, not unlucky.
"""

import importlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import numpy as np

from hrm_edge.export import export
from hrm_edge.files import sha256
from hrm_edge.runtime import load
from hrm_edge.runtime.engine import Model

CHECKPOINT = Path(__file__).parent.parent / "hrm_edge" / "data" / "hrm_tiny"
KV_BITS = (32, 8)
COUNT = 50
MARGIN = 0.25
MAX_TOKENS = 64


@dataclass(frozen=True)
class Vector:
    """A prompt, its prefix in tokens, and the greedy answer to it, end token included."""

    prompt: str
    condition: str
    ids: list[int]
    answers: dict[str, list[int]]  # by the KV cache's bits
    margin: float  # the least over all of them


def make_golden(checkpoint: Path = CHECKPOINT) -> dict[str, Any]:
    """Everything that golden.json holds. Raises HRMEdgeError if `checkpoint` cannot be exported."""
    with tempfile.TemporaryDirectory() as scratch:
        models = {bits: _model(checkpoint, Path(scratch), bits) for bits in KV_BITS}
        vectors = _vectors(models, checkpoint / "questions.jsonl")
    return {
        "made_by": "python -m benchmarks.golden",
        "onnxruntime": importlib.import_module("onnxruntime").__version__,
        "checkpoint_sha256": sha256(checkpoint / "model.safetensors"),
        "export": "hrm-edge export hrm_edge/data/hrm_tiny -o BUNDLE --kv-bits 32 (or 8)",
        "max_tokens": MAX_TOKENS,
        "vectors": [asdict(vector) for vector in vectors],
    }


def _model(checkpoint: Path, scratch: Path, bits: int) -> Model:
    out = scratch / f"kv{bits}"
    export(checkpoint, out, kv_bits=bits)
    return load(out, threads=1)


def _vectors(models: dict[int, Model], questions: Path) -> list[Vector]:
    vectors: list[Vector] = []
    for row in _in_turns(questions):
        vector = _answer(models, row["instruction"], row["condition"])
        if vector.margin >= MARGIN:
            vectors.append(vector)
        if len(vectors) == COUNT:
            return vectors
    raise AssertionError(f"{questions} has too few questions with a margin of {MARGIN}")


def _in_turns(questions: Path) -> Iterator[dict[str, str]]:
    """One question of each task after the other."""
    tasks: dict[str, list[dict[str, str]]] = {}
    for line in questions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tasks.setdefault(row["task"], []).append(row)
    for turn in zip_longest(*tasks.values()):
        yield from filter(None, turn)


def _answer(models: dict[int, Model], prompt: str, condition: str) -> Vector:
    answers: dict[str, list[int]] = {}
    margin, ids = float("inf"), []
    for bits, model in models.items():
        ids = model.encode(prompt, condition)
        answers[str(bits)], own = _greedy(model, ids)
        margin = min(margin, own)
    return Vector(prompt, condition, ids, answers, round(margin, 3))


def _greedy(model: Model, ids: list[int]) -> tuple[list[int], float]:
    """(the answer, its least margin)."""
    logits, answer, margin = model.session.prefill(ids), [], float("inf")
    while True:
        second, first = np.partition(logits, -2)[-2:]
        margin = min(margin, float(first - second))
        answer.append(int(logits.argmax()))
        if answer[-1] in model.manifest.eos_token_ids or len(answer) == MAX_TOKENS:
            return answer, margin
        logits = model.session.decode(answer[-1:])[-1]


@click.command()
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write golden vectors as JSON to OUT."""
    golden = make_golden()
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in golden.pop("vectors"))
    head = json.dumps(golden, indent=1)[:-2]
    out.write_text(f'{head},\n "vectors": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()

"""Golden vectors: what the Python runtime answers, for every other runtime of the same bundle.

python -m benchmarks.golden -o android_demo/golden.json

hrm-tiny's bundles with a KV cache of 32 and of 8 bits answer questions greedily, one token a call;
the latter also with the fewest L passes, and with cache slots shared by all of them. Of the
questions no more than PLAIN have one answer, and no more than APART answers that differ likewise.
The app's tests, the browser, Node and an emulated aarch64 must give the same tokens. Kernels round
differently from one processor to the next, so questions are skipped whose answer hangs on less than
MARGIN: `margin` is the least distance, in logits, between the likeliest token and the next. Where
a runtime differs from these vectors it is wrong, not unlucky.
"""

import importlib
import json
import tempfile
from collections import Counter
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
WAYS: dict[str, dict[str, Any]] = {  # a name: the KV cache's bits, and how the bundle is loaded
    "32": {"kv_bits": 32},
    "8": {"kv_bits": 8},
    "8, l_cycles 1,1": {"kv_bits": 8, "l_cycles": [1, 1]},
    "8, kv_share stack": {"kv_bits": 8, "kv_share": "stack"},
}
COUNT, PLAIN, APART = 50, 38, 7
MARGIN = 0.25
MAX_TOKENS = 64


@dataclass(frozen=True)
class Vector:
    """A prompt, its prefix in tokens, and the greedy answer to it, end token included."""

    prompt: str
    condition: str
    ids: list[int]
    answers: dict[str, list[int]]  # by the name in WAYS
    margin: float  # the least over all of them


def make_golden(checkpoint: Path = CHECKPOINT) -> dict[str, Any]:
    """Everything that golden.json holds. Raises HRMEdgeError if `checkpoint` cannot be exported."""
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: _model(checkpoint, Path(scratch), **way) for name, way in WAYS.items()}
        vectors = _vectors(models, checkpoint / "questions.jsonl")
    return {
        "made_by": "python -m benchmarks.golden",
        "onnxruntime": importlib.import_module("onnxruntime").__version__,
        "checkpoint_sha256": sha256(checkpoint / "model.safetensors"),
        "export": "hrm-edge export hrm_edge/data/hrm_tiny -o BUNDLE --kv-bits 32 (or 8)",
        "ways": WAYS,
        "max_tokens": MAX_TOKENS,
        "vectors": [asdict(vector) for vector in vectors],
    }


def _model(checkpoint: Path, scratch: Path, kv_bits: int, **how: Any) -> Model:
    out = scratch / f"kv{kv_bits}"
    if not out.exists():
        export(checkpoint, out, kv_bits=kv_bits, gate=None)
    return load(out, threads=1, **how)


def _vectors(models: dict[str, Model], questions: Path) -> list[Vector]:
    vectors, likewise = list[Vector](), Counter[tuple[bool, ...]]()
    for row in _in_turns(questions):
        vector = _answer(models, row["instruction"], row["condition"])
        if vector.margin < MARGIN:
            continue
        other = tuple(answer != vector.answers["8"] for answer in vector.answers.values())
        likewise[other] += 1
        if likewise[other] <= (APART if any(other) else PLAIN):
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


def _answer(models: dict[str, Model], prompt: str, condition: str) -> Vector:
    answers: dict[str, list[int]] = {}
    margin, ids = float("inf"), []
    for name, model in models.items():
        ids = model.encode(prompt, condition)
        answers[name], own = _greedy(model, ids)
        margin = min(margin, own)
    return Vector(prompt, condition, ids, answers, round(margin, 3))


def _greedy(model: Model, ids: list[int]) -> tuple[list[int], float]:
    """(the answer, its least margin)."""
    logits, answer, margin = model.session.start(ids), [], float("inf")
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

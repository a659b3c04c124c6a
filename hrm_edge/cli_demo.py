"""`hrm-edge demo`: the shipped hrm-tiny from checkpoint to answers, as a user would do it.

It joins two rooms, export and runtime, as cli_eval.py does; each is loaded by name when needed.
"""

import importlib
import json
import random
import tempfile
import textwrap
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click

from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import ONNX_DATA, WEIGHTS

SHIPPED = files("hrm_edge") / "data" / "hrm_tiny"
FLOAT32 = {"bits": 32, "head_bits": 32, "embedding_bits": 32, "kv_bits": 32}
LONGEST = 64  # tokens of an answer; the shipped questions have answers of 22 at most
LEAST_AGREEMENT = 0.9  # of top-1 tokens with the reference; int4 of the shipped model has more


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Keep the bundle here.")
@click.option("-q", "--questions", default=12, show_default=True, help="Held-out ones to ask.")
@click.option("--seed", type=int, help="The same seed asks the same questions.")
def command(out: Path | None, questions: int, seed: int | None) -> None:
    """Export the shipped model to int4, check it, and let it answer held-out questions.

    Then the same questions in float32, and with the prompt read as other runtimes read it.
    """
    if questions < 1:
        raise HRMEdgeError(f"questions is {questions}, expected 1 or more")
    with as_file(SHIPPED) as shipped, tempfile.TemporaryDirectory() as scratch:
        bundle = _export(shipped, out or Path(scratch) / "hrm-tiny-int4")
        load = importlib.import_module("hrm_edge.runtime").load
        model = load(bundle.path)
        _check(model, shipped / "reference_logits.npz")
        rows = _draw(shipped / "questions.jsonl", questions, seed)
        right = _ask(model, rows)
        export = importlib.import_module("hrm_edge.export").export
        whole = load(export(shipped, Path(scratch) / "float32", gate=None, **FLOAT32).path)
        others = {
            "in float32": sum(_right(row, _answer(whole, row)) for row in rows),
            "in int4, the prompt read from left to right, as other runtimes do": sum(
                _right(row, _causally(model, row)) for row in rows
            ),
        }
    for how, count in {"in int4, the prompt read in both directions": right, **others}.items():
        click.echo(f"{count:4} of {len(rows)} right {how}")
    click.echo(f"Try: hrm-edge chat {out or 'hrm-tiny'}")


def _export(shipped: Path, out: Path) -> Any:
    started = time.perf_counter()
    bundle = importlib.import_module("hrm_edge.export").export(shipped, out)
    seconds = time.perf_counter() - started
    before = (shipped / WEIGHTS).stat().st_size / 1e6
    after = bundle.manifest.files[ONNX_DATA].size / 1e6
    parameters = sum(bundle.manifest.model.parameters.values()) / 1e6
    click.echo(
        f"hrm-tiny, {parameters:.2f} M parameters: {before:.2f} MB of bf16 weights became "
        f"{after:.2f} MB of int4 in {seconds:.1f} s"
    )
    return bundle


def _check(model: Any, path: Path) -> None:
    """Compare with the logits that transformers computed from the checkpoint in float32."""
    import numpy as np

    from hrm_edge.numerics import log_softmax

    stored = np.load(path)
    agree, divergences = [], []
    for i in range(sum(name.startswith("prompt_") for name in stored.files)):
        prompt, answer = stored[f"prompt_{i}"].tolist(), stored[f"answer_{i}"].tolist()
        logits = model.session.prefill(prompt)[None]
        if len(answer) > 1:
            logits = np.concatenate([logits, model.session.decode(answer[:-1])])
        expected, got = log_softmax(stored[f"logits_{i}"]), log_softmax(logits)
        divergences += (np.exp(expected) * (expected - got)).sum(-1).tolist()
        agree += (expected.argmax(-1) == got.argmax(-1)).tolist()
    share = sum(agree) / len(agree)
    click.echo(
        f"against transformers' float32 logits at {len(agree)} positions of its own questions: top "
        f"token equal at "
        f"{share:.1%}, mean KL divergence {np.mean(divergences):.4f}"
    )
    if share < LEAST_AGREEMENT:
        raise HRMEdgeError(f"the exported model disagrees with its reference ({share:.1%} equal)")


def _draw(path: Path, count: int, seed: int | None) -> list[dict[str, str]]:
    """`count` random questions, the tasks taking turns."""
    pick = random.Random(seed)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pick.shuffle(rows)
    turn: dict[str, int] = {}
    for row in rows:
        row["turn"] = turn[row["task"]] = turn.get(row["task"], -1) + 1
    rows.sort(key=lambda row: row["turn"])
    return sorted(rows[:count], key=lambda row: row["task"])


def _answer(model: Any, row: dict[str, str]) -> str:
    return model.generate(row["instruction"], condition=row.get("condition", "direct")).text


def _right(row: dict[str, str], answer: str) -> bool:
    return answer.strip() == row["response"].strip()


def _causally(model: Any, row: dict[str, str]) -> str:
    """The answer to a prompt of which only the first token is a prefix, greedy."""
    first, *rest = model.encode(row["instruction"], row.get("condition", "direct"))
    session, ends, tokens = model.session, model.manifest.eos_token_ids, list[int]()
    session.prefill([first])
    logits = session.decode(rest)[-1]
    while len(tokens) < LONGEST and (token := int(logits.argmax())) not in ends:
        tokens.append(token)
        (logits,) = session.decode([token])
    return model.tokenizer.decode(tokens)


def _ask(model: Any, rows: list[dict[str, str]]) -> int:
    """Ask, show what comes, and count what is right."""
    right, tokens, seconds = 0, 0, 0.0
    for row in rows:
        started = time.perf_counter()
        done = model.generate(row["instruction"], condition=row.get("condition", "direct"))
        seconds += time.perf_counter() - started
        tokens += len(done.tokens)
        correct = _right(row, done.text)
        right += correct
        verdict = "right" if correct else f"wrong, it is: {row['response']}"
        click.echo(f"\n[{row['task']}] {row['instruction']}")
        click.echo(textwrap.indent(f"{done.text.strip()}   ({verdict})", "    "))
    memory = model.generate(rows[0]["instruction"], max_tokens=1).stats.anonymous_memory
    held = f", {memory / 1e6:.0f} MB of anonymous memory" if memory else ""
    click.echo(f"\n{tokens / seconds:.0f} tok/s with prompts{held}")
    return right

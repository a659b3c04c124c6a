"""Does llama.cpp answer a PrefixLM model's questions? Exact match, side by side with our runtime.

    python -m benchmarks.prefix CHECKPOINT QUESTIONS.jsonl -o benchmarks/results/prefix

One checkpoint, one set of held-out questions, greedy answers. The rows differ in who runs the model
and in whether the prompt is read as a prefix (each token sees all of it) or causally.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.llamacpp import RELEASE, Llama
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.export import Recipe, export
from hrm_edge.export.quantize.plan import make_plan
from hrm_edge.export.targets import GGUFTarget
from hrm_edge.export.to_gguf.write import write_gguf
from hrm_edge.prompt import Tokenizer, format_prompt, parse_conditions
from hrm_edge.runtime import load

CONTEXT, MOST = 512, 64  # tokens of a whole conversation, and of an answer
FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
Answerer = Callable[[dict[str, str]], str]


@dataclass(frozen=True)
class Outcome:
    """One row of the table: answers in the order of the questions."""

    name: str
    answers: tuple[str, ...]

    def exact(self, questions: list[dict[str, str]], task: str | None = None) -> float:
        """Share of the questions (of `task`) answered to the letter."""
        pairs = zip(questions, self.answers, strict=True)
        right = [a.strip() == q["response"] for q, a in pairs if task in (None, q["task"])]
        return sum(right) / len(right)

    def same(self, other: "Outcome") -> float:
        """Share of answers that are those of `other`."""
        pairs = list(zip(self.answers, other.answers, strict=True))
        return sum(a == b for a, b in pairs) / len(pairs)


def ours(checkpoint: Path, out: Path, recipe: Recipe) -> Answerer:
    """Answers of our runtime."""
    model = load(export(checkpoint, out, recipe=recipe).path, threads=1, max_context=CONTEXT)
    return lambda q: (
        model.generate(q["instruction"], condition=q["condition"], max_tokens=MOST).text
    )


def llamacpp(checkpoint: Path, out: Path, kind: str, causal: bool, switch: bool) -> Answerer:
    """Answers of llama.cpp; with `switch` the caller turns the mask off for the prompt."""
    out.mkdir()
    target = GGUFTarget(kind, causal=causal)
    write_gguf(make_plan(Checkpoint.open(checkpoint), target), out, CONTEXT)
    llama, tokenizer = Llama(out / "model.gguf", CONTEXT, 1), Tokenizer(checkpoint)

    def answer(question: dict[str, str]) -> str:
        text = format_prompt(question["instruction"], parse_conditions(question["condition"]))
        logits = llama.prefill(llama.tokenize(text), causal=False if switch else None)
        ids: list[int] = []
        while (token := int(logits.argmax())) != llama.eos and len(ids) < MOST:
            ids.append(token)
            logits = llama.decode([token])[0]
        return tokenizer.decode(ids)

    return answer


def compare(checkpoint: Path, questions: list[dict[str, str]]) -> list[Outcome]:
    """Every row; the first one is the reference."""
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        rows: Iterable[tuple[str, Answerer]] = (
            ("hrm-edge, float32", ours(checkpoint, at / "f32", FLOAT)),
            ("hrm-edge, int4", ours(checkpoint, at / "int4", Recipe())),
            ("llama.cpp, F16, causal prompt", llamacpp(checkpoint, at / "a", "f16", True, False)),
            (
                "llama.cpp, F16, our file as it is",
                llamacpp(checkpoint, at / "b", "f16", False, False),
            ),
            (
                "llama.cpp, F16, mask switched off",
                llamacpp(checkpoint, at / "c", "f16", True, True),
            ),
            (
                "llama.cpp, Q4_0, our file as it is",
                llamacpp(checkpoint, at / "d", "q4_0", False, False),
            ),
        )
        return [Outcome(name, tuple(answer(q) for q in questions)) for name, answer in rows]


def table(outcomes: list[Outcome], questions: list[dict[str, str]]) -> str:
    """Markdown, in percent."""
    tasks = list(dict.fromkeys(q["task"] for q in questions))
    rows = [
        f"| | all | {' | '.join(tasks)} | as the first row |",
        "|---|" + "---|" * (len(tasks) + 2),
    ]
    for outcome in outcomes:
        cells = [f"{100 * outcome.exact(questions, task):.1f}" for task in (None, *tasks)]
        cells.append(f"{100 * outcome.same(outcomes[0]):.1f}")
        rows.append(f"| {outcome.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write OUT.md and OUT.json.")
@click.option("--limit", default=0, help="Questions of each task; 0 takes all.")
def main(checkpoint: Path, questions: Path, out: Path | None, limit: int) -> None:
    """Answer QUESTIONS (JSONL: instruction, response, condition, task) in every way."""
    asked: dict[str, list[dict[str, str]]] = {}
    for line in questions.read_text(encoding="utf-8").splitlines():
        asked.setdefault(json.loads(line)["task"], []).append(json.loads(line))
    chosen = [q for rows in asked.values() for q in rows[: limit or None]]
    outcomes = compare(checkpoint, chosen)
    versions = f"hrm-edge {version('hrm-edge')}, llama.cpp {RELEASE}, {len(chosen)} questions"
    text = f"{table(outcomes, chosen)}\n\nExact match in percent, greedy. {versions}.\n"
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(text)
        raw = {o.name: o.answers for o in outcomes}
        out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""hrm-tiny's held-out questions, answered by its ONNX bundle and by its .pte of the same recipe.

    python -m benchmarks.executorch_answers

Exports the shipped hrm-tiny both ways and runs all its questions through each. Nothing is timed.
Writes results/executorch_answers.md.
"""

import tempfile
from pathlib import Path

import click

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.report import Gate, evaluate

RESULTS = Path(__file__).parent / "results"
OUT = RESULTS / "executorch_answers.md"
RECIPE = Recipe(kv_bits=32)
HEADING = """# ExecuTorch's answers beside ONNX Runtime's

`python -m benchmarks.executorch_answers`: the shipped hrm-tiny, {samples} held-out questions,
{tokens} answer tokens. Both bundles have int4 weights in groups of 128, a head of 8 bits, an
embedding of 4 and a float32 KV cache; KL and top-1 are against the checkpoint in float32.

| | exact match % | mean KL | p99 KL | top-1 % | perplexity |
|---|---:|---:|---:|---:|---:|
"""


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--samples", type=int, help="Only so many questions.")
@click.option("-o", "--out", default=OUT, type=click.Path(path_type=Path))
def main(samples: int | None, out: Path) -> None:
    gate = Gate(SHIPPED / "questions.jsonl", sources=False)
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as work:
        for target in ("onnx", "executorch"):
            bundle = export(SHIPPED, Path(work) / target, target, recipe=RECIPE, gate=None)
            found = evaluate(bundle.path, gate, SHIPPED, samples)
            f = found["bundle"]
            rows.append(
                f"| {target} | {100 * f['exact_match']:.2f} | {f['kl_mean']:.5f} | "
                f"{f['kl_p99']:.4f} | {100 * f['top1']:.2f} | {f['perplexity']:.4f} |"
            )
    f = found["reference"]
    rows.append(f"| checkpoint | {100 * f['exact_match']:.2f} | | | | {f['perplexity']:.4f} |")
    text = HEADING.format(**found) + "\n".join(rows) + "\n"
    out.write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()

"""What each way to quantize costs in answers: the table of benchmarks/results/quantization.md.

    python -m benchmarks.quantization                       # the shipped hrm-tiny, all rows
    python -m benchmarks.quantization CHECKPOINT --data test.jsonl --calibration train.jsonl \\
        --qat 128=runs/qat128/checkpoint --rows 'gptq.*128'

Each row exports a bundle, runs it on held-out questions with ONNX Runtime and compares with the
checkpoint. Rows with data-driven methods are drawn three times. What results/quantization.json
holds already is not measured again, so that a run can be continued. llama.cpp's rows compare its
causal logits with the checkpoint's causal ones.
"""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.export import Recipe, export
from hrm_edge.export.figures import Figures, Tally
from hrm_edge.export.forward import Batch, Variant
from hrm_edge.export.recipe import GPTQ, HQQ, RTN, Calibration
from hrm_edge.export.report import batches, predict, reader
from hrm_edge.export.run_onnx import Runner
from hrm_edge.prompt import Tokenizer
from hrm_edge.samples import Limits, Sample, read_prompts, tokenize_prompts

RESULTS = Path(__file__).parent / "results"
GROUPS = (32, 64, 128, 256)
DRAWS = 3
ASYM = GPTQ(symmetric=False)
METHODS = {
    "rtn": Recipe(),
    "rtn-asym": Recipe(method=RTN(symmetric=False)),
    "hqq": Recipe(method=HQQ()),
    "gptq": Recipe(method=GPTQ()),
    "gptq-asym": Recipe(method=ASYM),
    "gptq-asym, rotated": Recipe(method=ASYM, rotate=True),
    "rtn, 4.5 bits": Recipe(target_bits=4.5),
}
ABLATION = {
    "late passes 4x": replace(ASYM, passes="late"),
    "first pass only": replace(ASYM, passes="first"),
    "last pass only": replace(ASYM, passes="last"),
    "stage layer": replace(ASYM, stage="layer"),
    "stage stack": replace(ASYM, stage="stack"),
    "order HL": replace(ASYM, order="HL"),
    "no drift": replace(ASYM, drift=0.0),
    "damping 0.1": replace(ASYM, damping=0.1),
    "two rounds": replace(ASYM, rounds=2),
}


HEADING = """# Quantization, measured

`python -m benchmarks.quantization` on {name}, {samples} held-out questions, each row an exported
bundle run with ONNX Runtime and compared with the checkpoint in float32 (docs/quantization.md says
what the figures mean). Unless a row says otherwise only the stacks' weights are int4; embedding and
head have 8 bits, the KV cache is float32. Rows with calibration are drawn up to {draws} times from
the calibration prompts; the median is shown. llama.cpp runs causally and is compared with the
checkpoint run causally.

"""


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe, or a llama.cpp type."""

    name: str
    group: str
    recipe: Recipe | None = None
    source: Path | None = None  # another checkpoint than the reference: QAT's
    gguf: str = ""


def rows(qat: dict[int, Path]) -> list[Row]:
    """All lines. Only weights are quantized (with embedding and head 8 bits), or only the cache."""
    found = [Row("fp32", "-", Recipe(32, 128, 32, 32, 32))]
    for group in GROUPS:
        for name, recipe in METHODS.items():
            found.append(Row(name, str(group), _weights_only(recipe, group)))
        if group in qat:
            found.append(Row("qat", str(group), _weights_only(Recipe(), group), qat[group]))
    for name, method in ABLATION.items():
        found.append(Row(f"gptq-asym, {name}", "128", _weights_only(Recipe(method=method), 128)))
    for bits in (8, 4):
        cache = Recipe(32, 128, 32, 32, bits)
        found.append(Row(f"kv{bits}, from weights", "-", cache))
        found.append(Row(f"kv{bits}, fitted", "-", replace(cache, calibrate_kv=True)))
    best = Recipe(embedding_bits=8, method=ASYM, calibrate_kv=True)
    for bits in (8, 4):
        found.append(Row(f"default (rtn, kv{bits})", "128", Recipe(kv_bits=bits)))
        found.append(Row(f"gptq-asym, kv{bits} fitted", "128", replace(best, kv_bits=bits)))
    found += [Row(f"llama.cpp {name}", "32", gguf=name) for name in ("q4_0", "q8_0")]
    return found


def _weights_only(recipe: Recipe, group: int) -> Recipe:
    return replace(recipe, group_size=group, embedding_bits=8, head_bits=8, kv_bits=32)


class Bench:
    """The reference's predictions on the held-out questions, made once."""

    def __init__(self, checkpoint: Path, data: Path, count: int) -> None:
        self.path, self.checkpoint = checkpoint, Checkpoint.open(checkpoint)
        _, lines = read_prompts(data, "test")
        config = self.checkpoint.config
        limits = Limits(config.max_position_embeddings)
        step = max(1, len(lines) // count)
        self.samples = tokenize_prompts(
            lines[::step], Tokenizer(checkpoint), config.vocab_size, limits
        )
        self._references: dict[bool, list[np.ndarray]] = {}

    def reference(self, causal: bool = False) -> list[np.ndarray]:
        """Logits [answer, V] for each sample; `causal` reads the prompt causally too."""
        if causal not in self._references:
            config, read, found = self.checkpoint.config, reader(self.checkpoint), []
            for part in batches(self.samples):
                batch = Batch.of(part, config.prefix_lm and not causal)
                logits = predict(config, read, batch, [Variant()])[0]
                found += np.split(logits, np.cumsum(batch.answers)[:-1])
            self._references[causal] = found
        return self._references[causal]

    def figures(self, logits: Callable[[Sample], np.ndarray], causal: bool = False) -> Figures:
        """What `logits` makes of the questions, against the reference."""
        tally = Tally()
        for sample, expected in zip(self.samples, self.reference(causal), strict=True):
            answer = np.array(sample.answer)
            tally.add(logits(sample), answer, [len(answer)], expected)
        return tally.figures()

    def measure(self, row: Row, calibration: Path | None, draw: int) -> dict[str, Any]:
        """Figures and size in bytes of one row."""
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / "bundle"
            if row.recipe is None:
                bundle = export(self.path, out, "gguf", gguf_type=row.gguf, gate=None)
                figures = self._llamacpp(bundle.path / "model.gguf")
            else:
                chosen = replace(row.recipe, calibration=Calibration(calibration, seed=draw))
                bundle = export(row.source or self.path, out, recipe=chosen, gate=None)
                longest = max(len(sample.inputs) for sample in self.samples)
                runner = Runner(bundle.path / "model.onnx", longest)
                figures = self.figures(runner.logits)
            size = sum(f.stat().st_size for f in out.glob("model.*"))
        return asdict(figures) | {"bytes": size, "samples": len(self.samples)}

    def _llamacpp(self, path: Path) -> Figures:
        from benchmarks.llamacpp import Llama

        llama = Llama(path, context=512, threads=1, kv="f32")

        def logits(sample: Sample) -> np.ndarray:
            first = llama.prefill(sample.prompt, causal=True)[None]
            if len(sample.answer) == 1:
                return first
            return np.concatenate([first, llama.decode(sample.answer[:-1])])

        return self.figures(logits, causal=True)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line per row, the median over draws and, of the divergence, their range."""
    lines = [
        "| method | group | mean KL | range over draws | p99 KL | top-1 % | exact match % | MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, row in found.items():
        name, group, _ = key.split("|")
        merged.setdefault((name, group), []).append(row)
    for (name, group), draws in merged.items():
        mean = {k: statistics.median(d[k] for d in draws) for k in draws[0]}
        spread = sorted(d["kl_mean"] for d in draws)
        span = f"{spread[0]:.5f} to {spread[-1]:.5f}" if len(draws) > 1 else ""
        lines.append(
            f"| {name} | {group} | {mean['kl_mean']:.5f} | {span} | {mean['kl_p99']:.4f} | "
            f"{100 * mean['top1']:.2f} | {100 * mean['exact_match']:.2f} | "
            f"{mean['bytes'] / 1e6:.2f} |"
        )
    return "\n".join(lines)


def _draws(row: Row) -> Sequence[int]:
    return range(DRAWS) if row.recipe is not None and row.recipe.needs_data else (0,)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("checkpoint", default=SHIPPED, type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Default: the model's.")
@click.option("--calibration", type=click.Path(exists=True, path_type=Path))
@click.option("--samples", default=1800, show_default=True, help="Questions, evenly taken.")
@click.option("--qat", multiple=True, help="GROUP=CHECKPOINT, trained with --qat.")
@click.option("--rows", "pattern", default="", help="Only rows whose 'name|group' matches.")
@click.option("--draws", default=DRAWS, show_default=True, help="Of calibration data.")
@click.option("--out", default=RESULTS / "quantization.json", type=click.Path(path_type=Path))
def main(
    checkpoint: Path,
    data: Path | None,
    calibration: Path | None,
    samples: int,
    qat: tuple[str, ...],
    pattern: str,
    draws: int,
    out: Path,
) -> None:
    bench = Bench(checkpoint, data or checkpoint / "questions.jsonl", samples)
    found = json.loads(out.read_text()) if out.is_file() else {}
    trained = {int(g): Path(p) for g, _, p in (item.partition("=") for item in qat)}
    for row in rows(trained):
        for draw in list(_draws(row))[:draws]:
            key = f"{row.name}|{row.group}|{draw}"
            if key in found or not re.search(pattern, key):
                continue
            found[key] = bench.measure(row, calibration, draw)
            click.echo(f"{key}: {json.dumps(found[key])}")
            out.write_text(json.dumps(found, indent=1) + "\n")
    about = {"name": checkpoint.name, "samples": len(bench.samples), "draws": DRAWS}
    text = HEADING.format(**about) + table(found) + "\n"
    out.with_suffix(".md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()

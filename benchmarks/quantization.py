"""What each way to quantize costs in answers: the tables of benchmarks/results/quantization*.md.

    python -m benchmarks.quantization --calibration train.jsonl       # the shipped hrm-tiny
    python -m benchmarks.quantization CHECKPOINT --name deep --data test.jsonl \\
        --calibration train.jsonl --qat 128=runs/qat128/checkpoint --rows 'gptq.*128'

Each row exports a bundle, runs it on held-out questions with ONNX Runtime and compares with the
checkpoint. Rows whose weights are calibrated are drawn three times. What results/ holds already is
not measured again, so that a run can be continued. llama.cpp's rows compare its causal logits with
the checkpoint's causal ones.
"""

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.report import batches, predict, reader
from hrm_edge.export.evaluate.run_onnx import Loaded, Runner
from hrm_edge.export.evaluate.sources import Source, present
from hrm_edge.export.recipe import GPTQ, HQQ, RTN, Calibration
from hrm_edge.export.reference.figures import Figures, Tally
from hrm_edge.export.reference.forward import Batch, Variant
from hrm_edge.export.to_onnx.stored import StoredModel
from hrm_edge.prompt import Tokenizer
from hrm_edge.samples import Limits, Sample, read_prompts, tokenize_prompts

RESULTS = Path(__file__).parent / "results"
GROUPS = (32, 64, 128, 256)
CACHES = ((32, None), (8, None), (4, 8), (4, None))  # kv_bits, kv_h_bits
DRAWS = 3
ASYM = GPTQ(symmetric=False)
METHODS = {
    "rtn": Recipe(),
    "rtn-asym": Recipe(method=RTN(symmetric=False)),
    "hqq": Recipe(method=HQQ()),
    "gptq": Recipe(method=GPTQ()),
    "gptq-asym": Recipe(method=ASYM),
    "gptq-asym, rotated": Recipe(method=ASYM, rotate=True),
}
ABLATION = {
    "first pass only": replace(ASYM, passes="first"),
    "last pass only": replace(ASYM, passes="last"),
    "late passes 4x": replace(ASYM, passes="late"),
    "passes by sensitivity": replace(ASYM, passes="sensitivity"),
    "order LH": replace(ASYM, order="LH"),
    "layer by layer": replace(ASYM, stage="layer"),
    "stack by stack": replace(ASYM, stage="stack"),
    "no drift": replace(ASYM, drift=0.0),
    "damping 0.1": replace(ASYM, damping=0.1),
    "two rounds": replace(ASYM, rounds=2),
}
SCALES = {"from weights": False, "fitted": True}

HEADING = """# Quantization of {name}, measured

`python -m benchmarks.quantization`, {samples} held-out questions, each row an exported bundle run
with ONNX Runtime and compared with the checkpoint in float32 (docs/quantization.md says what the
figures mean). The stacks' weights are int4 (llama.cpp's: all tensors), embedding and head have 8
bits. KL, top-1, exact match and size are those with a float32 KV cache; on the right, KL and exact
match with 8 bits (scales from the weights), with 4 bits and 8 in the H passes' slots (4h8, fitted
scales), and with 4 bits (fitted). Calibrated weights are drawn up to {draws} times from the
calibration data: the median is shown, and the range of the mean KL; the KV cache's rows use the
first draw. llama.cpp reads prompts causally and is compared with the checkpoint run causally, as
are the rows named causal, our bundles run so by the numpy model.

"""


@dataclass(frozen=True)
class Row:
    """One cell of the table: a recipe, or a llama.cpp type."""

    name: str
    group: str
    recipe: Recipe | None = None
    source: Path | None = None  # another checkpoint than the reference: QAT's
    gguf: str = ""
    causal: bool = False  # the prompt too, as llama.cpp runs it

    def key(self, draw: int) -> str:
        kv = cache_name(self.recipe.kv_bits, self.recipe.kv_h_bits) if self.recipe else "32"
        return f"{self.name}|{self.group}|{kv}|{draw}"

    @property
    def draws(self) -> int:
        """How often to measure it: with several draws of data where weights depend on them."""
        recipe = self.recipe
        if recipe is None or recipe.kv_bits < 16 or not isinstance(recipe.method, GPTQ):
            return 1
        return DRAWS


def rows(qat: dict[int, Path]) -> list[Row]:
    """All of them, the main ones first."""
    found = [Row("fp32", "-", Recipe(32, 128, 32, 32, 32))]
    for cache in CACHES:
        for group in GROUPS:
            recipes = {name: _recipe(recipe, group, *cache) for name, recipe in METHODS.items()}
            found += [Row(name, str(group), recipe) for name, recipe in recipes.items()]
            if group in qat:
                found.append(Row("qat", str(group), _recipe(Recipe(), group, *cache), qat[group]))
    for name, method in ABLATION.items():
        found.append(Row(f"gptq-asym, {name}", "128", _recipe(Recipe(method=method), 128)))
    found.append(Row("rtn, 4.5 bits", "128", _recipe(Recipe(target_bits=4.5), 128)))
    for kv_bits, kv_h_bits in CACHES[1:]:
        for how, fitted in SCALES.items():
            recipe = Recipe(32, 128, 32, 32, kv_bits, calibrate_kv=fitted, kv_h_bits=kv_h_bits)
            found.append(Row(f"KV cache alone, {how}", "-", recipe))
    found += [Row(f"llama.cpp {name}", "32", gguf=name, causal=True) for name in ("q4_0", "q8_0")]
    for group, method in ((32, RTN()), (128, ASYM)):
        recipe = Recipe(4, group, 4, 4, 32, method=method)
        name = f"{recipe.method_name}, all 4 bits, causal"
        found.append(Row(name, str(group), recipe, causal=True))
    return found


def cache_name(kv_bits: int, kv_h_bits: int | None) -> str:
    """Of a KV cache in a key: its bits, and those of the H passes if they are others."""
    return f"{kv_bits}" + ("" if kv_h_bits is None else f"h{kv_h_bits}")


def _recipe(recipe: Recipe, group: int, kv_bits: int = 32, kv_h_bits: int | None = None) -> Recipe:
    return replace(
        recipe,
        group_size=group,
        embedding_bits=8,
        head_bits=8,
        kv_bits=kv_bits,
        kv_h_bits=kv_h_bits,
    )


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
            self._references[causal] = self._predict(Variant(), causal)
        return self._references[causal]

    def _predict(self, variant: Variant, causal: bool) -> list[np.ndarray]:
        config, read, found = self.checkpoint.config, reader(self.checkpoint), []
        for part in batches(self.samples):
            batch = Batch.of(part, config.prefix_lm and not causal)
            logits = predict(config, read, batch, [variant])[0]
            found += np.split(logits, np.cumsum(batch.answers)[:-1])
        return found

    def figures(self, logits: Callable[[Sample], np.ndarray], causal: bool = False) -> Figures:
        """What `logits` makes of the questions, against the reference."""
        tally = Tally()
        for sample, expected in zip(self.samples, self.reference(causal), strict=True):
            answer = np.array(sample.answer)
            tally.add(logits(sample), answer, [len(answer)], expected)
        return tally.figures()

    def measure(
        self, row: Row, calibration: Path | None, draw: int, work: Path | None
    ) -> dict[str, Any]:
        """Figures and size in bytes of one row."""
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / "bundle"
            if row.recipe is None:
                bundle = export(self.path, out, "gguf", gguf_type=row.gguf, gate=None)
                figures = self._llamacpp(bundle.path / "model.gguf")
            else:
                chosen = replace(row.recipe, calibration=Calibration(calibration, seed=draw))
                source = row.source or self.path
                bundle = export(source, out, recipe=chosen, gate=None, work=work)
                run = self._causal if row.causal else self._onnxruntime
                figures = run(bundle.path / "model.onnx")
            size = sum(f.stat().st_size for f in out.glob("model.*"))
        return asdict(figures) | {"bytes": size, "samples": len(self.samples)}

    def _onnxruntime(self, path: Path) -> Figures:
        longest = max(len(sample.inputs) for sample in self.samples)
        return self.figures(Runner(Loaded.open(path, threads=1), longest).logits)

    def _causal(self, path: Path) -> Figures:
        """Our bundle as llama.cpp would run it, which only the numpy model can."""
        stored = StoredModel(path, self.checkpoint.config)
        logits = iter(self._predict(Source(stored, *present(stored)), causal=True))
        return self.figures(lambda _: next(logits), causal=True)

    def _llamacpp(self, path: Path) -> Figures:
        from benchmarks.llamacpp import Llama

        def logits(sample: Sample) -> np.ndarray:
            first = llama.prefill(sample.prompt, causal=True)[None]
            if len(sample.answer) == 1:
                return first
            return np.concatenate([first, llama.decode(sample.answer[:-1])])

        with Llama(path, context=512, threads=1, kv="f32") as llama:
            return self.figures(logits, causal=True)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each name and group, medians over draws."""
    quantized = [cache_name(*cache) for cache in CACHES[1:]]
    head = ["method", "group", "mean KL", "over draws", "p99 KL", "top-1 %", "exact %", "MB"]
    head += [cell for kv in quantized for cell in (f"KL, KV {kv}", "exact %")]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    merged: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for key, row in found.items():
        name, group, kv, _ = key.split("|")
        merged.setdefault((name, group), {}).setdefault(kv, []).append(row)
    names = list(dict.fromkeys(name for name, _ in merged))
    for name, group in sorted(merged, key=lambda row: (names.index(row[0]), row[1].zfill(3))):
        by_kv = merged[name, group]
        cells = [name, group, *_cells(by_kv.get("32"))]
        for kv in quantized:
            cells += [_kl(by_kv.get(kv)), _percent(by_kv.get(kv), "exact_match")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(draws: list[dict[str, Any]] | None) -> list[str]:
    """Of a float32 cache: divergences, agreement, answers, size."""
    if not draws:
        return [""] * 6
    spread = sorted(d["kl_mean"] for d in draws)
    span = f"{spread[0]:.5f}-{spread[-1]:.5f}" if len(draws) > 1 else ""
    p99, size = (statistics.median(d[k] for d in draws) for k in ("kl_p99", "bytes"))
    percent = [_percent(draws, k) for k in ("top1", "exact_match")]
    return [_kl(draws), span, f"{p99:.4f}", *percent, f"{size / 1e6:.2f}"]


def _kl(draws: list[dict[str, Any]] | None) -> str:
    return f"{statistics.median(d['kl_mean'] for d in draws):.5f}" if draws else ""


def _percent(draws: list[dict[str, Any]] | None, figure: str) -> str:
    return f"{100 * statistics.median(d[figure] for d in draws):.2f}" if draws else ""


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("checkpoint", default=SHIPPED, type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Default: the model's.")
@click.option("--calibration", type=click.Path(exists=True, path_type=Path))
@click.option("--samples", default=1800, show_default=True, help="Questions, evenly taken.")
@click.option("--qat", multiple=True, help="GROUP=CHECKPOINT, trained with --qat.")
@click.option("--rows", "pattern", default="", help="Only rows whose 'name|group' matches.")
@click.option("--draws", default=DRAWS, show_default=True, help="Of calibration data, at most.")
@click.option("--name", help="Of the results' file and heading; default: the checkpoint's.")
@click.option("--work", type=click.Path(path_type=Path), help="Keeps calibrated weights.")
def main(
    checkpoint: Path,
    data: Path | None,
    calibration: Path | None,
    samples: int,
    qat: tuple[str, ...],
    pattern: str,
    draws: int,
    name: str | None,
    work: Path | None,
) -> None:
    bench = Bench(checkpoint, data or checkpoint / "questions.jsonl", samples)
    name = name or checkpoint.name
    out = RESULTS / f"quantization_{name}.json"
    found = json.loads(out.read_text()) if out.is_file() else {}
    trained = {int(g): Path(p) for g, _, p in (item.partition("=") for item in qat)}
    for row in rows(trained):
        for draw in range(min(draws, row.draws)):
            key = row.key(draw)
            if key in found or not re.search(pattern, key):
                continue
            found[key] = bench.measure(row, calibration, draw, work)
            click.echo(f"{key}: {json.dumps(found[key])}")
            out.write_text(json.dumps(found, indent=1) + "\n")
    about = {"name": name, "samples": len(bench.samples), "draws": DRAWS}
    text = HEADING.format(**about) + table(found) + "\n"
    out.with_suffix(".md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()

"""Which parts of a 4-bit KV cache are worth 8 bits: benchmarks/results/kv_parts*.md.

    python -m benchmarks.kv_parts --calibration train.jsonl          # the shipped hrm-tiny
    python -m benchmarks.kv_parts CHECKPOINT --data test.jsonl --calibration train.jsonl --name deep

Only the cache is rounded, in the numpy model, with scales fitted to the calibration samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.hrm_tiny_release import SHIPPED
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.export.evaluate.report import batches, predict, reader
from hrm_edge.export.quantize.kv_scales import CacheScales, FittedCache, round_cache
from hrm_edge.export.quantize.plan import calibration_samples
from hrm_edge.export.recipe import Calibration
from hrm_edge.export.reference.figures import Tally
from hrm_edge.export.reference.forward import Batch, Variant
from hrm_edge.prompt import Tokenizer
from hrm_edge.runtime.bench import markdown_table
from hrm_edge.samples import Limits, read_prompts, tokenize_prompts

RESULTS = Path(__file__).parent / "results"
COARSE, FINE = 4, 8


@dataclass(frozen=True)
class Part:
    """What has FINE bits: the slots and of these `k`, `v` or both; or float the first tokens."""

    name: str
    fine: Callable[[int, int], bool] = lambda turn, layer: False  # (pass, layer)
    of: str = "kv"
    first: int = 0


def parts(config: HRMTextConfig) -> list[Part]:
    """Candidates, the extremes first."""
    passes, layers = config.passes, config.layers_per_stack
    cycle = config.L_cycles + 1
    found = [
        Part("none"),
        Part("all", lambda turn, layer: True),
        Part("H passes", lambda turn, layer: passes[turn] == "H"),
        Part("first cycle", lambda turn, layer: turn < cycle),
        Part("last cycle", lambda turn, layer: turn >= len(passes) - cycle),
        Part("first layer of each pass", lambda turn, layer: layer == 0),
        Part("last layer of each pass", lambda turn, layer: layer == layers - 1),
        Part("K", lambda turn, layer: True, "k"),
        Part("V", lambda turn, layer: True, "v"),
        Part("first token, as float", first=1),
        Part("first 4 tokens, as float", first=4),
    ]
    for turn, stack in enumerate(passes):
        found.append(Part(f"pass {turn} ({stack})", lambda t, layer, turn=turn: t == turn))
    return found


class Mixed(Variant):
    """The original model with its cache rounded, `part` of it finer; `positions` [T] of rows."""

    def __init__(
        self,
        config: HRMTextConfig,
        scales: dict[int, dict[int, CacheScales]],
        part: Part,
        positions: np.ndarray,
    ) -> None:
        self._config, self._scales, self._part = config, scales, part
        self._exact = positions[:, None, None] < part.first

    def cache(
        self, name: str, turn: int, k: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        layer = int(name.split(".")[3])
        slot = turn * self._config.layers_per_stack + layer
        rounded = []
        for kind, x in (("k", k), ("v", v)):
            fine = kind in self._part.of and self._part.fine(turn, layer)
            bits = FINE if fine else COARSE
            coarse = round_cache(x, getattr(self._scales[bits][slot], kind), bits)
            rounded.append(np.where(self._exact, x, coarse))
        return rounded[0], rounded[1]


def mean_bits(config: HRMTextConfig, part: Part) -> float:
    """Of a value, over all slots; tokens that stay float do not count."""
    fine = [
        part.fine(turn, layer)
        for turn in range(len(config.passes))
        for layer in range(config.layers_per_stack)
    ]
    return COARSE + (FINE - COARSE) * sum(fine) / len(fine) * len(part.of) / 2


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("checkpoint", default=SHIPPED, type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Default: the model's.")
@click.option("--calibration", type=click.Path(exists=True, path_type=Path))
@click.option("--samples", default=300, show_default=True, help="Questions, evenly taken.")
@click.option("--name", help="Of the results' file and heading; default: the checkpoint's.")
def main(
    checkpoint: Path, data: Path | None, calibration: Path | None, samples: int, name: str | None
) -> None:
    opened = Checkpoint.open(checkpoint)
    config, read, name = opened.config, reader(opened), name or checkpoint.name
    _, lines = read_prompts(data or checkpoint / "questions.jsonl", "test")
    limits = Limits(config.max_position_embeddings)
    lines = lines[:: max(1, len(lines) // samples)]
    questions = tokenize_prompts(lines, Tokenizer(checkpoint), config.vocab_size, limits)
    drawn = Batch.of(calibration_samples(opened, Calibration(calibration)), config.prefix_lm)
    fitted = {b: FittedCache(config, lambda _: None, config.slot_bits(b)) for b in (COARSE, FINE)}
    predict(config, read, drawn, list(fitted.values()))
    scales = {bits: cache.scales for bits, cache in fitted.items()}
    candidates = parts(config)
    tallies = [Tally() for _ in candidates]
    for group in batches(questions):
        batch = Batch.of(group, config.prefix_lm)
        variants = [Mixed(config, scales, part, batch.positions) for part in candidates]
        expected, *found = predict(config, read, batch, [Variant(), *variants])
        for tally, logits in zip(tallies, found, strict=True):
            tally.add(logits, batch.targets, list(batch.answers), expected)
    rows, most = [], None
    for part, tally in zip(candidates, tallies, strict=True):
        f = tally.figures()
        assert f.kl_mean is not None and f.top1 is not None
        most = most or f.kl_mean
        kl, share, top1 = f"{f.kl_mean:.5f}", f"{f.kl_mean / most:.2f}", f"{100 * f.top1:.2f}"
        rows.append([part.name, f"{mean_bits(config, part):.1f}", kl, share, top1])
    head = [f"{FINE} bits in", "bits a value", "mean KL", f"of all {COARSE}", "top-1 %"]
    text = f"# A {COARSE}-bit KV cache of {name}, parts of it finer\n\n"
    text += f"`python -m benchmarks.kv_parts`, {len(questions)} held-out questions; only the cache "
    text += "is rounded, in the numpy model,\nwith fitted scales.\n\n"
    text += markdown_table(head, rows) + "\n"
    (RESULTS / f"kv_parts_{name}.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()

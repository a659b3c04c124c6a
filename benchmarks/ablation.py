"""HRM-Text against plain transformers and against itself with one part taken out.

    python -m benchmarks.hrm_tiny_data runs/hrm_tiny_data
    python -m benchmarks.ablation runs/hrm_tiny_data --out runs/ablation --steps 3000 --jobs 2

Every variant is trained on the same packed rows in the same order for the same number of steps,
one thread each, with the settings of configs/hrm_tiny_warmup.yaml (its schedule shrunk to --steps),
and scored on test.jsonl. Variants whose mean exact match lies within two points of another's are
trained with a second seed. Finished runs are kept under --out, so an interrupted ablation goes on
where it was. Writes results/NAME.json and results/NAME.md.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import click
import torch

from benchmarks.baselines import OpenHRMText, PlainTransformer
from hrm_edge.model import HRMText
from hrm_edge.prompt import SPECIAL_TOKENS, Tokenizer
from hrm_edge.training.config import TrainConfig, load_config
from hrm_edge.training.data import Samples, tokenize
from hrm_edge.training.distributed import join_world
from hrm_edge.training.evaluate import evaluate
from hrm_edge.training.objective import outcome
from hrm_edge.training.optimizer import AdamATan2
from hrm_edge.training.packing import Stream, build_rows
from hrm_edge.training.schedule import bp_passes, learning_rate

HERE = Path(__file__).parent
BASE = HERE.parent / "configs" / "hrm_tiny_warmup.yaml"  # whose schedule starts from scratch
CLOSE = 0.02  # means of exact match this near call for a second seed


@dataclass(frozen=True)
class Variant:
    """One row of the table: what changes against hrm-tiny."""

    name: str
    title: str
    build: type[HRMText] = HRMText
    layers: int = 2  # of a stack; a plain transformer has one stack
    prefix_lm: bool = True
    loss_on: str = "response"


VARIANTS = (
    Variant("hrm", "HRM H2xL3"),
    Variant("plain_parameters", "plain transformer, equal parameters", PlainTransformer, 4),
    Variant("plain_flops", "plain transformer, equal FLOPs", PlainTransformer, 16),
    Variant("no_exit_norm", "HRM without the exit norm", OpenHRMText),
    Variant("causal", "HRM without prefix attention", prefix_lm=False),
    Variant("all_tokens", "HRM, loss on all tokens", loss_on="all"),
)


@dataclass(frozen=True)
class Result:
    """What one training run came to. CPU time is of the training steps alone."""

    variant: str
    seed: int
    steps: int
    parameters: int
    tokens: int
    teraflops: float
    cpu_minutes: float
    loss: float
    exact_match: dict[str, float]

    @property
    def mean(self) -> float:
        return mean(self.exact_match.values())

    @property
    def tokens_per_second(self) -> float:
        """Per second of CPU time, which other programs on the machine hardly change."""
        return self.tokens / self.cpu_minutes / 60


def build(variant: Variant, seed: int, config: TrainConfig, tokenizer: Path) -> HRMText:
    """A freshly initialized model of the variant."""
    vocab = Tokenizer(tokenizer).vocab_size
    shape = replace(
        config.architecture(vocab, SPECIAL_TOKENS),
        layers_per_stack=variant.layers,
        prefix_lm=variant.prefix_lm,
    )
    model = variant.build(shape)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def load_samples(name: str, data: Path, out: Path) -> Samples:
    """Token arrays of data/`name`, shared by all runs under `out`."""
    longest = load_config(BASE).data.row_length
    return tokenize(data / name, data / "tokenizer", out / "tokens", longest=longest)


def train_one(variant: Variant, seed: int, steps: int, data: Path, out: Path) -> Result:
    """Train and score one variant, or read the result of an earlier call."""
    kept = out / f"{variant.name}-{seed}-{steps}.json"
    if kept.is_file():
        return Result(**json.loads(kept.read_text()))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config = load_config(BASE)
    model = build(variant, seed, config, data / "tokenizer")
    optimizer, cost = train(
        model, variant, seed, steps, config, load_samples("train.jsonl", data, out)
    )
    test = load_samples("test.jsonl", data, out)
    with join_world() as world, optimizer.averaged():
        scores = evaluate(model, test, world, rows=8, capacity=config.data.row_length)
    exact = {task: score.exact_match for task, score in scores.items()}
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = Result(variant.name, seed, steps, parameters, **cost, exact_match=exact)
    kept.write_text(json.dumps(asdict(result)))
    return result


def train(
    model: HRMText, variant: Variant, seed: int, steps: int, config: TrainConfig, samples: Samples
) -> tuple[AdamATan2, dict[str, Any]]:
    """All steps. Returns the optimizer, which holds the averaged weights, and the run's costs."""
    s, length = config.optimizer, config.data.row_length
    ema = min(s.ema, 1 - 15 / steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamATan2(trained, s.lr, (s.beta1, s.beta2), s.weight_decay, ema)
    stream = Stream(samples.slots, length, seed, 0, 0)
    tokens, flops, loss, began = 0, 0.0, math.nan, time.process_time()
    for step in range(1, steps + 1):
        horizon = bp_passes(s, step, steps)
        rows = build_rows(
            samples, stream.take(config.run.batch_tokens // length), length, variant.loss_on
        )
        losses = outcome(model, rows, horizon).losses
        losses.mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(s, step, steps)
        optimizer.step()
        optimizer.zero_grad()
        tokens, flops = tokens + rows.used, flops + rows.used * flops_per_token(model, horizon)
        loss = (
            losses.mean().item() if math.isnan(loss) else 0.98 * loss + 0.02 * losses.mean().item()
        )
        if step % 100 == 0:
            click.echo(f"{variant.name}-{seed} {step}/{steps} loss {loss:.4f}", err=True)
    minutes = (time.process_time() - began) / 60
    return optimizer, {
        "tokens": tokens,
        "teraflops": flops / 1e12,
        "cpu_minutes": minutes,
        "loss": loss,
    }


def flops_per_token(model: HRMText, horizon: int) -> float:
    """Forward and backward of the layers: two and four per weight that a token passes.

    Left out: the products of attention itself, and the head, which runs on the answers only.
    """
    config = model.config
    stack = config.layers_per_stack * config.layer_parameters
    if isinstance(model, PlainTransformer):
        return 6.0 * stack
    return stack * (2.0 * len(config.passes) + 4.0 * horizon)


def close(results: Sequence[Result]) -> set[str]:
    """The variants whose mean lies within CLOSE of another's."""
    pairs = ((a, b) for a in results for b in results if a is not b)
    return {a.variant for a, b in pairs if abs(a.mean - b.mean) <= CLOSE}


def run_all(
    work: Iterable[tuple[Variant, int]], steps: int, data: Path, out: Path, jobs: int
) -> list[Result]:
    """Train several variants, `jobs` at a time, each in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures = [pool.submit(train_one, v, seed, steps, data, out) for v, seed in work]
        return [future.result() for future in futures]


def table(results: Sequence[Result]) -> str:
    """Markdown: a row per variant, the mean over its seeds, and exact match per task."""
    tasks = list(results[0].exact_match)
    heads = ["", "parameters", "TFLOP", "CPU min", "tok/s", "mean", "per seed", *tasks]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for variant in VARIANTS:
        runs = [r for r in results if r.variant == variant.name]
        if runs:
            lines.append("| " + " | ".join(cells(variant, runs, tasks)) + " |")
    return "\n".join(lines)


def cells(variant: Variant, runs: Sequence[Result], tasks: Sequence[str]) -> list[str]:
    """One row of the table."""
    return [
        variant.title,
        f"{runs[0].parameters:,}",
        f"{mean(r.teraflops for r in runs):.1f}",
        f"{mean(r.cpu_minutes for r in runs):.1f}",
        f"{mean(r.tokens_per_second for r in runs):,.0f}",
        f"**{100 * mean(r.mean for r in runs):.1f}**",
        ", ".join(f"{100 * r.mean:.1f}" for r in runs),
        *(f"{100 * mean(r.exact_match[task] for r in runs):.1f}" for task in tasks),
    ]


def report(results: Sequence[Result], command: str, twice: Sequence[str]) -> str:
    """The table and how it was made."""
    first, longest = results[0], max(r.cpu_minutes for r in results)
    also = f", and of {', '.join(twice)}" if twice else ""
    return f"""# Ablation on hrm-tiny's data

Exact match in percent on 200 held-out questions per task (averaged weights, fp32) after
{first.steps:,} steps on {first.tokens / 1e6:.2f} M tokens, the same rows in the same order for
every variant with the same seed. Only what the row names differs; nothing was tuned per variant.
The budget is small, {longest:.0f} CPU minutes for the slowest run, and several tasks are half
learned: the table ranks how fast they are learned, not how well in the end.

- mean: over tasks and seeds. A second seed was trained of variants with means within two points of
  another's{also}.
- TFLOP: computed cost of the layers over the whole run, forward and backward.
- CPU min, tok/s: CPU time of the training steps, one thread each, measured.
- Equal FLOPs means equal in the forward pass: 16 layers, as many as HRM applies to a token.

{table(results)}

`{command}`
"""


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where runs are kept.")
@click.option("--steps", default=3000, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, one thread each.")
@click.option("--name", default="ablation", show_default=True, help="Of the files in results/.")
@click.option("--only", multiple=True, type=click.Choice([v.name for v in VARIANTS]))
@click.option("--twice", multiple=True, type=click.Choice([v.name for v in VARIANTS]))
def main(
    data: Path,
    out: Path,
    steps: int,
    jobs: int,
    name: str,
    only: tuple[str, ...],
    twice: tuple[str, ...],
) -> None:
    chosen = [v for v in VARIANTS if not only or v.name in only]
    for file in ("train.jsonl", "test.jsonl"):
        load_samples(file, data, out)  # before two processes want to write them
    results = run_all([(v, 0) for v in chosen], steps, data, out, jobs)
    again = close(results) | set(twice)
    results += run_all([(v, 1) for v in chosen if v.name in again], steps, data, out, jobs)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    command = f"python -m benchmarks.ablation {data} --out {out} --steps {steps} --name {name}"
    command += "".join(f" --only {v}" for v in only) + "".join(f" --twice {v}" for v in twice)
    (folder / f"{name}.json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    (folder / f"{name}.md").write_text(report(results, command, twice))
    click.echo(table(results))


if __name__ == "__main__":
    main()

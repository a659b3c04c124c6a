"""Tokens per second and peak memory of a training step: ours against transformers' own.

    python benchmarks/training_step.py --data train.jsonl [--config configs/hrm_tiny.yaml]

Both run the same architecture, samples of the same file, the same number of samples a step, five
passes of back-propagation (transformers: L_bp_cycles [0, 3]) and an optimizer step. Ours packs
samples into rows and scores answer tokens only; transformers gets what its collators make of the
same samples: one sample a row, padded to the longest of the batch. Each side runs in a process of
its own, and the two alternate, so that other load on the machine falls on both.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hrm_edge.training import loop
from hrm_edge.training.config import TrainConfig, load_config
from hrm_edge.training.data import Samples
from hrm_edge.training.distributed import World
from hrm_edge.training.prepare import Corpus, prepare
from hrm_edge.training.weights import new_model

ALONE = World(0, 1, torch.device("cpu"))


def ours(config: TrainConfig, corpus: Corpus, out: Path) -> Callable[[], int]:
    """A step of our loop; returns the tokens it took in."""
    model = new_model(config.architecture(corpus.vocab_size, corpus.special_tokens))
    run = loop.Run(config, model, corpus, out, ALONE, quiet=True)

    def step() -> int:
        before = run.progress.tokens
        run._step()
        return run.progress.tokens - before

    return step


def transformers(config: TrainConfig, corpus: Corpus, out: Path) -> Callable[[], int]:
    """The same step through HrmTextForCausalLM and AdamW."""
    from transformers import HrmTextConfig, HrmTextForCausalLM

    architecture = config.architecture(corpus.vocab_size, corpus.special_tokens).to_dict()
    model = HrmTextForCausalLM(HrmTextConfig(**architecture, L_bp_cycles=[0, 3])).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    count = round(config.run.batch_tokens * 0.95 / float(corpus.train.slots.mean()))
    rng = np.random.default_rng(0)

    def step() -> int:
        batch, tokens = padded(corpus.train, rng.integers(0, len(corpus.train), count))
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return tokens

    return step


def padded(samples: Samples, chosen: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
    """transformers' inputs for these samples, and the number of input tokens."""
    table = samples.table[chosen]
    shape = (len(chosen), int(table["length"].max()))
    ids, labels = np.zeros(shape, np.int64), np.full(shape, -100)
    kinds, present = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, entry in enumerate(table):
        start, prompt, length = (int(entry[k]) for k in ("start", "prompt", "length"))
        ids[i, :length] = samples.tokens[start : start + length]
        labels[i, prompt:length] = ids[i, prompt:length]
        kinds[i, :prompt], present[i, :length] = 1, 1
    arrays = {"input_ids": ids, "labels": labels, "token_type_ids": kinds}
    arrays["attention_mask"] = present
    return {k: torch.from_numpy(v) for k, v in arrays.items()}, int((table["length"] - 1).sum())


def measure(side: str, config: TrainConfig, data: Path, steps: int) -> None:
    """Print tokens per second of each step and the peak memory, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        corpus = prepare(config, data, None, out, ALONE)
        torch.set_flush_denormal(True)
        step = {"ours": ours, "transformers": transformers}[side](config, corpus, out)
        step()
        rates = []
        for _ in range(steps):
            began = time.perf_counter()
            tokens = step()
            rates.append(tokens / (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rates": rates, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step, ours and transformers'.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "transformers"])
    options = parser.parse_args()
    config = load_config(options.config)
    config = replace(
        config,
        run=replace(config.run, threads=options.threads, compile=False),
        optimizer=replace(config.optimizer, bp_warmup=0.0, bp_max=5),
    )
    torch.set_num_threads(options.threads)
    if options.side:
        measure(options.side, config, options.data, options.steps)
        return
    report(options.rounds)


def report(rounds: int) -> None:
    """Run both sides in turn and print a table."""
    found: dict[str, list[dict[str, list[float]]]] = {"ours": [], "transformers": []}
    for _ in range(rounds):
        for side, results in found.items():
            command = [sys.executable, *sys.argv, "--side", side]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(json.loads(printed.splitlines()[-1]))
    print("| side | tok/s, median | tok/s, best | peak memory, MiB |\n|---|---:|---:|---:|")
    medians = {}
    for side, results in found.items():
        rates = np.concatenate([r["rates"] for r in results])
        peak = max(np.max(r["peak_mib"]) for r in results)
        medians[side] = np.median(rates)
        print(f"| {side} | {medians[side]:.0f} | {rates.max():.0f} | {peak:.0f} |")
    print(f"\nratio of medians: {medians['ours'] / medians['transformers']:.2f}")


if __name__ == "__main__":
    main()

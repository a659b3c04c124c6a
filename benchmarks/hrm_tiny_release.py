"""Turns the two stages of hrm-tiny's training into what the package ships.

    python -m benchmarks.hrm_tiny_release runs/warmup runs/hrm_tiny runs/hrm_tiny_data

writes hrm_edge/data/hrm_tiny: the checkpoint, its held-out questions, logits that transformers
computes from it, the curves, and a model card whose figures are measured here. The card itself says
how the two stages are run.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import matplotlib
import numpy as np
import torch
from transformers import HrmTextForCausalLM

from hrm_edge.files import new_directory
from hrm_edge.prompt import Tokenizer, format_prompt
from hrm_edge.training.config import load_config
from hrm_edge.training.data import tokenize
from hrm_edge.training.distributed import join_world
from hrm_edge.training.evaluate import Score, evaluate
from hrm_edge.training.metrics import read_metrics
from hrm_edge.training.weights import load_model

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "hrm_edge" / "data" / "hrm_tiny"
CONFIG = ROOT / "configs" / "hrm_tiny.yaml"
ABLATION = Path(__file__).parent / "results" / "ablation.json"
LIMIT = 8 * 2**20  # bytes

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(checkpoint: Path, questions: Path, cache: Path, per_task: int = 0) -> dict[str, Score]:
    """Exact match, token accuracy and loss per task of the checkpoint's stored (bf16) weights.

    per_task: how many questions of each; 0 = all.
    """
    longest = load_config(CONFIG).data.row_length
    samples = tokenize(questions, checkpoint, cache, longest=longest)
    with join_world() as world:
        model = load_model(checkpoint)
        return evaluate(model, samples, world, rows=16, capacity=longest, per_task=per_task)


@torch.no_grad()
def reference_logits(checkpoint: Path, rows: list[Row]) -> dict[str, np.ndarray]:
    """What transformers computes in fp32 for one question of each task, fed the right answer.

    For question i: prompt_i and answer_i (int64 ids), logits_i [len(answer_i), V] (fp32), whose
    row j predicts answer_i[j].
    """
    model = HrmTextForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer, found = Tokenizer(checkpoint), {}
    first = {row["task"]: row for row in reversed(rows)}
    for i, task in enumerate(sorted(first)):
        row = first[task]
        prompt = tokenizer.encode(format_prompt(row["instruction"], (row["condition"],)))
        answer = tokenizer.encode(row["response"] + "<|box_end|>")
        types = torch.tensor([[1] * len(prompt) + [0] * (len(answer) - 1)])
        ids = torch.tensor([prompt + answer[:-1]])
        logits = model(ids, token_type_ids=types, use_cache=False).logits[0, len(prompt) - 1 :]
        found |= {f"prompt_{i}": np.array(prompt), f"answer_{i}": np.array(answer)}
        found[f"logits_{i}"] = logits.numpy()
    return found


def most_frequent(rows: list[Row], task: str) -> float:
    """Exact match of always giving the task's most frequent answer."""
    answers = Counter(row["response"] for row in rows if row["task"] == task)
    return answers.most_common(1)[0][1] / answers.total()


def baseline(variant: str) -> dict[str, Any]:
    """The first seed's result of a variant in the ablation."""
    results = json.loads(ABLATION.read_text())
    return next(result for result in results if result["variant"] == variant)


def table(scores: dict[str, Score], rows: list[Row]) -> str:
    """Markdown: a row per task and the mean, exact match in percent."""
    columns = (
        {task: found.exact_match for task, found in scores.items()},
        baseline("hrm")["exact_match"],
        baseline("plain_parameters")["exact_match"],
        baseline("plain_flops")["exact_match"],
        {task: most_frequent(rows, task) for task in scores},
    )
    heads = ("task", "**hrm-tiny**", "HRM, short", "plain, short", "plain 16 layers, short")
    lines = [f"| {' | '.join(heads)} | most frequent answer | an example |"]
    lines.append("|---" + "|---:" * len(columns) + "|---|")
    for task in scores:
        row = next(row for row in rows if row["task"] == task)
        example = f"{row['instruction']} → {row['response']}".replace("\n", "⏎").replace("|", "\\|")
        figures = " | ".join(f"{100 * column[task]:.1f}" for column in columns)
        lines.append(f"| {task} | {figures} | `{example}` |")
    means = (sum(column[task] for task in scores) / len(scores) for column in columns)
    lines.append("| **mean** | " + " | ".join(f"**{100 * m:.1f}**" for m in means) + " | |")
    return "\n".join(lines)


def curves(runs: Sequence[Path], tasks: Sequence[str], out: Path) -> None:
    """A PNG of the training loss and of validation exact match per task, stage after stage."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8.5, 8), sharex=True)
    start = 0
    found: dict[str, list[tuple[int, float]]] = {task: [] for task in tasks}
    for number, run in enumerate(runs, start=1):
        lines = read_metrics(run / "metrics.jsonl")
        losses = [(start + x["step"], x["loss"]) for x in lines if "loss" in x]
        top.plot(*zip(*losses, strict=True), label=f"stage {number}")
        for line in (x for x in lines if "scores" in x):
            for task in found.keys() & line["scores"].keys():
                share = line["scores"][task]["exact_match"]
                found[task].append((start + line["step"], 100 * share))
        start += lines[-1]["step"]
    for task, points in found.items():
        bottom.plot(*zip(*points, strict=True), label=task)
    top.set(ylabel="loss (nats per answer token)", yscale="log")
    bottom.set(xlabel="step", ylabel="exact match (%)", ylim=(0, 101))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def stage(run: Path) -> dict[str, float]:
    """Steps, million tokens and minutes (at the median speed) of one stage."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "tokens" in line]
    speed = median(line["tokens_per_second"] for line in lines)
    tokens = lines[-1]["tokens"]
    return {"steps": lines[-1]["step"], "tokens": tokens / 1e6, "minutes": tokens / speed / 60}


def card(warmup: Path, run: Path, scores: dict[str, Score], rows: list[Row]) -> str:
    """The model card. Every figure in it is read from the runs or measured by this script."""
    model = load_config(CONFIG).model
    parameters = sum(p.numel() for p in load_model(run / "checkpoint").parameters())
    return CARD.format(
        parameters=parameters,
        model=model,
        first=stage(warmup),
        second=stage(run),
        minutes=stage(warmup)["minutes"] + stage(run)["minutes"],
        short=baseline("hrm")["tokens"] / 1e6,
        share=baseline("hrm")["tokens"] / 1e4 / (stage(warmup)["tokens"] + stage(run)["tokens"]),
        plain=baseline("plain_flops")["parameters"] / 1e6,
        table=table(scores, rows),
    )


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [hrm_text, reasoning-gym]
---

# hrm-tiny

A small HRM-Text model ({parameters:,} parameters: hidden {model.hidden_size}, MLP
{model.intermediate_size}, {model.layers} layers a stack, {model.heads} heads, H2xL3) that answers
nine families of [reasoning-gym](https://github.com/open-thought/reasoning-gym) questions. It exists
so that training, export and the runtimes can be seen at work on a real model within seconds;
outside of these families it knows nothing.

## Exact match, 200 held-out questions per task

{table}

Greedy decoding of the shipped bf16 weights, in percent. The three columns marked "short" were
trained from scratch on the same {short:.1f} M tokens of the second stage's questions, {share:.0f} %
of the tokens that hrm-tiny saw: the same HRM; a plain transformer of equal parameters (its four
layers, each applied once, so at a quarter of the FLOPs); and one of equal FLOPs (16 layers,
{plain:.1f} M parameters). Nothing was tuned for any of them. No plain transformer was trained for
as long as hrm-tiny. `benchmarks/results/ablation.md` has more variants.

## Questions

`questions.jsonl` holds the held-out questions. reasoning-gym draws item *i* from `seed + i`; the
seed ranges of test, validation and training do not meet, and a question drawn in two of them was
taken out of training. `benchmarks/hrm_tiny_data.py` has every setting. What differs from
reasoning-gym:

- The wording is cut to the sentence that carries the question; instructions on the form of the
  answer are left out.
- Words to spell backward, sort or put in reverse order are in capitals: the tokenizer never merges
  capitals, so the model sees their letters. Digits are single tokens. Words to put in reverse order
  have at most seven letters.
- Numbers to sort lose their ".0"; the cells of sudokus and matrices lose the spaces between them.

Limits to keep in mind: words come from word lists that training uses too (in other questions), 4x4
sudoku has 288 solved grids, which all occur in training, and chain_sum (two or three one-digit
terms) has 4,200 distinct questions, of which training sees most of the rest.

The first stage of training had harder or other tasks too, which were made easier or given up after
4,000 steps, because they were learned too slowly for the time there was. Exact match then, on 50
held-out questions each: chain_sum with two-digit terms 10 %, number_filtering with negative
numbers 20 %, family_relationships 50 %, letter_counting 66 %.

## Training

```
python -m benchmarks.hrm_tiny_data runs/hrm_tiny_data
hrm-edge train configs/hrm_tiny_warmup.yaml --data runs/hrm_tiny_data/warmup.jsonl \\
    --valid runs/hrm_tiny_data/valid.jsonl --out runs/warmup
hrm-edge train configs/hrm_tiny.yaml --data runs/hrm_tiny_data/train.jsonl \\
    --valid runs/hrm_tiny_data/valid.jsonl --init runs/warmup/checkpoint --out runs/hrm_tiny
```

The first stage was laid out for 12,000 steps and ended at {first[steps]:,} ({first[tokens]:.1f} M
tokens), when it was clear which tasks needed a larger share of the questions; its averaged weights
began the second stage of {second[steps]:,} steps ({second[tokens]:.1f} M tokens). The packing of
rows has changed since the first stage ran, so a rerun sees its questions in another order.

One core of a shared x86-64 machine needs about {minutes:.0f} minutes for both stages (at the runs'
median speed). Loss on the answers only; back-propagation through the last 2 to 5 of 8 stack passes;
AdamATan2; the weights are the moving average. The curves show the training loss, and exact match on
the validation questions (50 per task); the two stages mix the tasks differently, hence the jump in
the loss.

![curves](curves.png)

## Prompt

`<|im_start|><|object_ref_start|>` + question + `<|im_end|>`, the prompt read in both directions;
the answer ends at `<|box_end|>`. `reference_logits.npz` holds logits that transformers computes in
fp32 for one question of each task (`prompt_i`, `answer_i`, `logits_i`: row j predicts
`answer_i[j]`).
"""


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("warmup", type=click.Path(exists=True, path_type=Path))
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
def main(warmup: Path, run: Path, data: Path) -> None:
    rows = read_rows(data / "test.jsonl")
    with new_directory(SHIPPED, force=True) as out:
        shutil.copytree(run / "checkpoint", out, dirs_exist_ok=True)
        shutil.copyfile(data / "test.jsonl", out / "questions.jsonl")
        np.savez_compressed(out / "reference_logits.npz", **reference_logits(out, rows))  # pyright: ignore[reportArgumentType]
        scores = score(out, out / "questions.jsonl", run / "data")
        curves((warmup, run), list(scores), out / "curves.png")
        (out / "README.md").write_text(card(warmup, run, scores, rows))
        size = sum(file.stat().st_size for file in out.rglob("*"))
        assert size <= LIMIT, f"{size} bytes, {LIMIT} allowed"
    for task, found in scores.items():
        click.echo(f"{task}: {found.exact_match:.1%}")
    click.echo(f"{SHIPPED}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

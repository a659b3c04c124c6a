"""Turns a finished training run into the hrm-tiny that the package ships.

    hrm-edge train configs/tiny.yaml --data runs/hrm_tiny_data/train.jsonl \\
        --valid runs/hrm_tiny_data/valid.jsonl --out runs/hrm_tiny
    python -m benchmarks.hrm_tiny_release runs/hrm_tiny runs/hrm_tiny_data

writes hrm_edge/data/hrm_tiny: the checkpoint, its held-out questions, logits that transformers
computes from it, the curves, and a model card whose figures are measured here.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch
from transformers import HrmTextForCausalLM

from hrm_edge.files import new_directory
from hrm_edge.prompt import Tokenizer, format_prompt
from hrm_edge.training.config import TrainConfig, load_config
from hrm_edge.training.data import tokenize
from hrm_edge.training.distributed import join_world
from hrm_edge.training.evaluate import Score, evaluate
from hrm_edge.training.metrics import read_metrics
from hrm_edge.training.weights import load_model

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "hrm_edge" / "data" / "hrm_tiny"
CONFIG = ROOT / "configs" / "tiny.yaml"
BASELINE = Path(__file__).parent / "results" / "hrm_tiny_baseline.json"
LIMIT = 8 * 2**20  # bytes

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(checkpoint: Path, questions: Path, cache: Path) -> dict[str, Score]:
    """Exact match, token accuracy and loss per task of the checkpoint's stored (bf16) weights."""
    longest = load_config(CONFIG).data.row_length
    samples = tokenize(questions, checkpoint, cache, longest=longest)
    with join_world() as world:
        return evaluate(load_model(checkpoint), samples, world, rows=16, capacity=longest)


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


def table(scores: dict[str, Score], baseline: dict[str, float], rows: list[Row]) -> str:
    """Markdown: a row per task and the mean, exact match in percent."""
    heads = "| task | hrm-tiny | plain transformer | most frequent answer | an example |"
    lines = [heads, "|---|---:|---:|---:|---|"]
    guesses = {task: most_frequent(rows, task) for task in scores}
    for task, found in scores.items():
        row = next(row for row in rows if row["task"] == task)
        example = f"{row['instruction']} → {row['response']}".replace("\n", "⏎").replace("|", "\\|")
        lines.append(
            f"| {task} | {100 * found.exact_match:.1f} | {100 * baseline[task]:.1f} "
            f"| {100 * guesses[task]:.1f} | `{example}` |"
        )
    means = [
        sum(values) / len(scores)
        for values in (
            [s.exact_match for s in scores.values()],
            baseline.values(),
            guesses.values(),
        )
    ]
    lines.append("| **mean** | " + " | ".join(f"**{100 * m:.1f}**" for m in means) + " | |")
    return "\n".join(lines)


def card(run: Path, config: TrainConfig, scores: dict[str, Score], rows: list[Row]) -> str:
    """The model card. Every figure in it is read from the run or measured by this script."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "tokens" in line]
    speed = median(line["tokens_per_second"] for line in lines)
    baseline = json.loads(BASELINE.read_text())[0]
    parameters = sum(p.numel() for p in load_model(run / "checkpoint").parameters())
    return CARD.format(
        parameters=parameters,
        hidden=config.model.hidden_size,
        intermediate=config.model.intermediate_size,
        layers=config.model.layers,
        heads=config.model.heads,
        steps=lines[-1]["step"],
        tokens=lines[-1]["tokens"] / 1e6,
        minutes=lines[-1]["tokens"] / speed / 60,
        baseline_parameters=baseline["parameters"],
        baseline_steps=baseline["steps"],
        table=table(scores, baseline["exact_match"], rows),
    )


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [hrm_text, reasoning-gym]
---

# hrm-tiny

A small HRM-Text model ({parameters:,} parameters: hidden {hidden}, MLP {intermediate}, {layers}
layers a stack, {heads} heads, H2xL3) that answers eight families of
[reasoning-gym](https://github.com/open-thought/reasoning-gym) questions. It exists so that
training, export and the runtimes can be seen at work on a real model within seconds; outside of
these families it knows nothing.

## Exact match, 200 held-out questions per task

{table}

Greedy decoding of the shipped bf16 weights, in percent. The plain transformer has
{baseline_parameters:,} parameters (as many layers, applied once each) and saw the same rows for the
same {baseline_steps:,} steps; nothing was tuned for it, nor are its FLOPs equal: HRM applies its
layers four times as often. `benchmarks/results/ablation.md` has the comparison at equal FLOPs.

## Questions

`questions.jsonl` holds the held-out questions. reasoning-gym draws item *i* from `seed + i`; the
seed ranges of test, validation and training do not meet, and a question drawn in two of them was
taken out of training. `benchmarks/hrm_tiny_data.py` has every setting. What differs from reasoning-gym:

- The wording is cut to the sentence that carries the question; instructions on the form of the
  answer are left out.
- Words to spell, sort or count letters in are in capitals: the tokenizer never merges capitals, so
  the model sees their letters. Digits are single tokens.
- Numbers to sort lose their ".0"; sudoku rows lose the spaces between cells.
- family_relationships: questions answered with niece, nephew or an in-law are left out, because the
  generator gives the other person's role for them.

Limits to keep in mind: words of spelling and sorting tasks come from word lists that training uses
too (in other questions), 4x4 sudoku has 288 solved grids, which all occur in training, and
chain_sum has 16,400 distinct questions, of which training sees all but the held-out ones.

## Training

```
python -m benchmarks.hrm_tiny_data runs/hrm_tiny_data
hrm-edge train configs/tiny.yaml --data runs/hrm_tiny_data/train.jsonl \\
    --valid runs/hrm_tiny_data/valid.jsonl --out runs/hrm_tiny
```

{steps:,} steps, {tokens:.1f} M tokens; one x86-64 core with nothing beside it needs about
{minutes:.0f} minutes (at the run's median speed). Loss on the answers only; back-propagation through the last 2 to 5 of 8 stack passes; AdamATan2; the
weights are the moving average. The curves show the training loss and exact match on the validation
questions.

![loss](loss.png)
![exact match](exact_match.png)

## Prompt

`<|im_start|><|object_ref_start|>` + question + `<|im_end|>`, the prompt read in both directions;
the answer ends at `<|box_end|>`. `reference_logits.npz` holds logits that transformers computes in fp32
for one question of each task (`prompt_i`, `answer_i`, `logits_i`: row j predicts `answer_i[j]`).
"""


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
def main(run: Path, data: Path) -> None:
    rows = read_rows(data / "test.jsonl")
    with new_directory(SHIPPED, force=True) as out:
        shutil.copytree(run / "checkpoint", out, dirs_exist_ok=True)
        shutil.copyfile(data / "test.jsonl", out / "questions.jsonl")
        for curve in ("loss.png", "exact_match.png"):
            shutil.copyfile(run / curve, out / curve)
        np.savez_compressed(out / "reference_logits.npz", **reference_logits(out, rows))  # pyright: ignore[reportArgumentType]
        scores = score(out, out / "questions.jsonl", run / "data")
        (out / "README.md").write_text(card(run, load_config(CONFIG), scores, rows))
        size = sum(file.stat().st_size for file in out.rglob("*"))
        assert size <= LIMIT, f"{size} bytes, {LIMIT} allowed"
    for task, found in scores.items():
        click.echo(f"{task}: {found.exact_match:.1%}")
    click.echo(f"{SHIPPED}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

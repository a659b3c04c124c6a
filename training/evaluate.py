"""Exact match, token accuracy and loss of held-out samples, per task.

One forward scores a sample: greedy decoding reproduces the reference answer exactly when, fed the
answer's own tokens, the model ranks each of them first, the end token included. (An answer spelled
with other tokens counts as wrong, so this is a lower bound on matching text.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from hrm_edge.model import HRMText

from .data import Samples, tokenize
from .distributed import World, reshard
from .objective import outcome
from .packing import best_fit, build_rows
from .weights import load_model


@dataclass(frozen=True)
class Score:
    """Of one task: mean loss per answer token (nats), shares of tokens and of answers right."""

    samples: int
    loss: float
    token_accuracy: float
    exact_match: float


def mean_loss(scores: dict[str, Score]) -> float:
    """Over all tasks, weighted by their samples (nats per answer token)."""
    samples = sum(score.samples for score in scores.values())
    return sum(score.samples * score.loss for score in scores.values()) / max(1, samples)


def choose(samples: Samples, per_task: int) -> np.ndarray:
    """Indices of the first `per_task` samples of each task; 0 = all."""
    task = samples.table["task"]
    if not per_task:
        return np.arange(len(samples))
    return np.concatenate([np.flatnonzero(task == t)[:per_task] for t in range(len(samples.tasks))])


def batches(lengths: np.ndarray, rows: int, capacity: int) -> list[list[list[int]]]:
    """Pack all samples into batches of `rows` rows: indices into `lengths` per row and batch."""
    bins = best_fit(lengths.tolist(), capacity)
    assert bins is not None, f"a sample of {lengths.max()} tokens does not fit a row of {capacity}"
    bins += [[] for _ in range(-len(bins) % rows)]
    return [bins[i : i + rows] for i in range(0, len(bins), rows)]


@torch.no_grad()
def evaluate(
    model: HRMText,
    samples: Samples,
    world: World,
    *,
    rows: int,
    capacity: int,
    per_task: int = 0,
    precision: str = "fp32",
    plan: Sequence[bool] | None = None,
) -> dict[str, Score]:
    """Score `samples` with the model as it is, by the passes of `plan` (None = all); processes
    share the work, all get the result. Nothing is dropped meanwhile.
    """
    training = model.training
    model.eval()
    try:
        return _evaluate(model, samples, world, rows, capacity, per_task, precision, plan)
    finally:
        model.train(training)


def _evaluate(
    model: HRMText,
    samples: Samples,
    world: World,
    rows: int,
    capacity: int,
    per_task: int,
    precision: str,
    plan: Sequence[bool] | None,
) -> dict[str, Score]:
    chosen = choose(samples, per_task)
    totals = torch.zeros(len(samples.tasks), 5, dtype=torch.float64)
    work = batches(samples.slots[chosen], rows, capacity)
    for i in range(-(-len(work) // world.size)):
        mine = i * world.size + world.rank  # every process runs as often: forwards are collective
        bins = [[int(chosen[k]) for k in row] for row in work[min(mine, len(work) - 1)]]
        found = _score(model, samples, bins, world, capacity, precision, plan)
        totals += found if mine < len(work) else 0
    reshard(model)
    totals = world.total(totals.to(world.device, torch.float32)).cpu()
    return {name: _mean(totals[i].tolist()) for i, name in enumerate(samples.tasks)}


def _score(
    model: HRMText,
    samples: Samples,
    bins: list[list[int]],
    world: World,
    capacity: int,
    precision: str,
    plan: Sequence[bool] | None,
) -> torch.Tensor:
    """Sums per task [tasks, 5]: samples, answers right, tokens, tokens right, loss."""
    rows = build_rows(samples, bins, capacity).to(world.device)
    with torch.autocast(world.device.type, torch.bfloat16, enabled=precision == "bf16"):
        result = outcome(model, rows, plan=plan)
    most = max(1, max(len(row) for row in bins))
    row = result.select // capacity
    sample = (row * most + rows.segments.flatten()[result.select]).cpu()
    sums = torch.zeros(len(bins) * most, 3, dtype=torch.float64)
    hits, losses = result.hits.double().cpu(), result.losses.double().cpu()
    sums.index_add_(0, sample, torch.stack((torch.ones_like(hits), hits, losses), 1))
    totals = torch.zeros(len(samples.tasks), 5, dtype=torch.float64)
    for r, indices in enumerate(bins):
        for k, index in enumerate(indices):
            tokens, right, loss = sums[r * most + k].tolist()
            task = int(samples.table[index]["task"])
            totals[task] += torch.tensor([1, tokens == right, tokens, right, loss])
    return totals


def _mean(sums: list[float]) -> Score:
    samples, exact, tokens, right, loss = sums
    tokens, count = max(tokens, 1), max(samples, 1)
    return Score(int(samples), loss / tokens, right / tokens, exact / count)


def score(checkpoint: Path, data: Path, condition: str = "direct") -> dict[str, Score]:
    """Score a checkpoint directory on a JSONL file. Raises HRMEdgeError for a bad file or line.

    Samples beyond the checkpoint's longest context are left out.
    """
    with TemporaryDirectory() as cache:
        model = load_model(checkpoint)
        most = model.config.max_position_embeddings
        samples = tokenize(
            data, checkpoint, Path(cache), condition=condition, longest=most, too_long="drop"
        )
        capacity = max(128, int(samples.slots.max()))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows = max(1, 4096 // capacity)
        return evaluate(
            model.to(device), samples, World(0, 1, device), rows=rows, capacity=capacity
        )

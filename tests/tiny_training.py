"""What the tests of training share: a task that a toy model learns in seconds, and its config."""

import json
import random
from pathlib import Path
from typing import Any

from hrm_edge.training.config import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    TrainConfig,
)

TINY = TrainConfig(
    ModelSettings(hidden_size=32, intermediate_size=48, layers=1, heads=2),
    DataSettings(vocab_size=280, row_length=32),
    OptimizerSettings(lr=2e-2, warmup_steps=4, ema=0.8),
    RunSettings(steps=12, batch_tokens=512, log_every=1, checkpoint_every=4, threads=1),
)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def letters(path: Path, count: int, seed: int) -> Path:
    """Lines that ask for the last letter ("echo") or for its successor ("next")."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        task, word = rng.choice(["echo", "next"]), "".join(rng.choices("abcdef", k=3))
        answer = word[-1] if task == "echo" else chr(ord(word[-1]) + 1)
        lines.append({"instruction": f"{task} {word}", "response": answer, "task": task})
    return write_lines(path, lines)


def metrics(out: Path, key: str) -> list[Any]:
    """The values of `key` over a run, in order."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]

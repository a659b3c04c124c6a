"""What a run says about itself: metrics.jsonl, TensorBoard events, and on stderr a bar or lines."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch.utils.tensorboard import SummaryWriter

from hrm_edge import memory
from hrm_edge.files import writing

from .evaluate import Score, mean_loss


class Metrics:
    """Writes one run's metrics. A resumed run first drops what lies beyond its step."""

    def __init__(self, out: Path, step: int, steps: int, quiet: bool = False) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        with writing(self.path):
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.steps, self.valid = steps, ""  # the last loss on held-out data, as text
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            columns = (BarColumn(), TextColumn("{task.completed}/{task.total}  {task.description}"))
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=steps, completed=step)
            self.bar.start()

    def tick(self, step: int) -> None:
        """A step is done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def step(self, line: dict[str, Any], seconds_left: float) -> None:
        """Record what was summed up over the last steps."""
        self._write(line)
        for key, value in line.items():
            if key != "step":
                self.board.add_scalar(f"train/{key}", value, line["step"])
        held = memory.anonymous()
        parts = [
            f"loss {line['loss']:.4f}",
            *([f"valid {self.valid}"] if self.valid else []),
            f"{line['samples_per_second']:.0f} samples/s",
            f"{line['tokens_per_second']:.0f} tok/s",
            f"bp {line['bp_passes']}",
            *([f"{held / 2**30:.1f} GiB"] if held else []),
            f"{clock(seconds_left)} left",
        ]
        text = "  ".join(parts)
        if self.bar is not None:
            self.bar.update(self.task, completed=line["step"], description=text)
        else:
            self.console.print(f"step {line['step']}/{self.steps}  {text}")

    def scores(self, step: int, scores: dict[str, Score]) -> None:
        """Record an evaluation."""
        self._write({"step": step, "scores": {name: asdict(s) for name, s in scores.items()}})
        self.valid = f"{mean_loss(scores):.4f}"
        for name, score in scores.items():
            for key, value in asdict(score).items():
                self.board.add_scalar(f"{key}/{name}", value, step)
            self.console.print(
                f"  {name}: exact match {score.exact_match:.1%}  "
                f"token accuracy {score.token_accuracy:.1%}  loss {score.loss:.4f}"
            )

    def note(self, text: str) -> None:
        """A line for the reader only."""
        self.console.print(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.board.close()

    def _write(self, line: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def clock(seconds: float) -> str:
    """1:02:03."""
    if not math.isfinite(seconds):
        return "-:--:--"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"

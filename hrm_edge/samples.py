"""Prompts and their answers as token ids: what calibration and evaluation feed to a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from hrm_edge.errors import HRMEdgeError
from hrm_edge.lines import Line, read_lines
from hrm_edge.prompt import ANSWER_END, Tokenizer

SHIPPED = files("hrm_edge") / "data" / "prompts"


@dataclass(frozen=True)
class Sample:
    """A prefix and the answer that follows it, its end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    task: str

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model reads to predict every token of the answer."""
        return self.prompt + self.answer[:-1]


@dataclass(frozen=True)
class Limits:
    """How much of a file is used. `longest` counts a sample's inputs, `tokens` those of all."""

    longest: int
    tokens: int | None = None
    samples: int | None = None


def default_prompts(name: str) -> list[Line]:
    """The lines that ship with the package: "test" or "calibration"."""
    with as_file(SHIPPED / f"{name}.jsonl") as path:
        return [line for line in read_lines(path) if line is not None]


def read_prompts(path: Path | None, shipped: str) -> tuple[str, list[Line]]:
    """The usable lines of `path`, or the `shipped` ones, and the name to report them under.

    Raises HRMEdgeError if a line is bad or none has a response.
    """
    if path is None:
        return f"shipped {shipped} prompts", default_prompts(shipped)
    lines = [line for line in read_lines(path) if line is not None]
    if not lines:
        raise HRMEdgeError(
            f'{path}: no line with a response; expected {{"instruction": ..., "response": ...}}'
        )
    return path.name, lines


def tokenize_prompts(
    lines: Sequence[Line], tokenizer: Tokenizer, vocab_size: int, limits: Limits
) -> list[Sample]:
    """The first samples within `limits`; longer ones, and ids beyond `vocab_size`, are left out."""
    samples: list[Sample] = []
    total = 0
    for line in lines:
        prompt = tokenizer.encode(line.prompt)
        sample = Sample(
            tuple(prompt), tuple(tokenizer.encode(line.response + ANSWER_END)), line.task
        )
        if len(sample.inputs) > limits.longest or max(prompt + list(sample.answer)) >= vocab_size:
            continue
        total += len(sample.inputs)
        full = limits.tokens is not None and samples and total > limits.tokens
        if full or (limits.samples is not None and len(samples) == limits.samples):
            break
        samples.append(sample)
    return samples

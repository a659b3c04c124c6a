"""Lines of JSONL data: an instruction, the answer to it, and optionally its condition and task.

A line is `{"instruction": text, "response": text, "condition"?: "direct" | "synth,cot" | ...,
"task"?: name}`. Training, calibration and evaluation read the same form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hrm_edge.config import parse_json
from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import format_prompt, parse_conditions

NO_TASK = "all"


@dataclass(frozen=True)
class Line:
    """One checked line of a data file."""

    number: int
    instruction: str
    response: str
    conditions: tuple[str, ...]
    task: str

    @property
    def prompt(self) -> str:
        """The prefix with its special tokens spelled out."""
        return format_prompt(self.instruction, self.conditions)


def read_lines(path: Path, condition: str = "direct") -> Iterator[Line | None]:
    """Each line of a JSONL file, None for one with an empty response; blank lines are skipped.

    Raises HRMEdgeError naming file and line for anything else than the object described above.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield _parse(text, number, path, condition)
    except FileNotFoundError:
        raise HRMEdgeError(f"{path}: no such data file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _parse(text: str, number: int, path: Path, condition: str) -> Line | None:
    def fail(problem: str) -> NoReturn:
        raise HRMEdgeError(f"{path}, line {number}: {problem}")

    raw = parse_json(text, f"{path}, line {number}")
    if not isinstance(raw, dict):
        fail(f"expected an object with instruction and response, found {type(raw).__name__}")
    values = {"condition": condition, "task": NO_TASK} | raw
    for key in ("instruction", "response", "condition", "task"):
        if key not in values:
            fail(f"{key} is missing, expected text")
        if not isinstance(values[key], str):
            fail(f"{key} is {values[key]!r:.80}, expected text")
    if not values["response"].strip():
        return None
    if not values["instruction"].strip():
        fail("instruction is empty")
    try:
        conditions = parse_conditions(values["condition"])
    except HRMEdgeError as error:
        fail(str(error))
    return Line(number, values["instruction"], values["response"], conditions, values["task"])

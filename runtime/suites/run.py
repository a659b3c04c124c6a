"""A run over suites: which questions, their answers in a file that a stopped run goes on from."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hrm_edge.errors import HRMEdgeError
from hrm_edge.journal import Journal
from hrm_edge.progress import counting

from .answering import Answerer, Told
from .data import Data
from .tasks import SUITES, LocalSuite, Question, Suite

Row = dict[str, Any]  # of the file: {"id", "suite", "asked", "text", "value", "strict", ...}
ABOUT = "about"  # id of the line that says what the others are answers of


@dataclass(frozen=True)
class Choice:
    """Which questions of each suite: `limit` of them, drawn by `seed`; of these, part `shard`.

    Raises HRMEdgeError for a value out of range.
    """

    limit: int | None = None
    seed: int = 0
    shard: tuple[int, int] = (1, 1)  # (1, 4): the first of four

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise HRMEdgeError(f"limit is {self.limit}, expected 1 or more")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise HRMEdgeError(f"shard is {part}/{parts}, expected such as 1/4, 2/4, 3/4, 4/4")

    def of(self, questions: list[Question]) -> list[Question]:
        """In the order of the data set."""
        kept = range(len(questions))
        if self.limit is not None and self.limit < len(questions):
            kept = sorted(random.Random(self.seed).sample(kept, self.limit))
        part, parts = self.shard
        return [questions[i] for i in kept][part - 1 :: parts]


def named(names: str) -> dict[str, Suite | LocalSuite]:
    """The suites of "gsm8k,mmlu" or the path of a JSONL file. Raises HRMEdgeError."""
    found: dict[str, Suite | LocalSuite] = {}
    for name in names.split(","):
        if (Path(name).stem if name.endswith(".jsonl") else name) in found:
            raise HRMEdgeError(f"suite {name!r} is named twice")
        if name in SUITES:
            found[name] = SUITES[name]
        elif name.endswith(".jsonl"):
            found[Path(name).stem] = LocalSuite(Path(name))
        else:
            known = ", ".join(SUITES)
            raise HRMEdgeError(f"suite is {name!r}, expected {known}, or a .jsonl file")
    return found


@dataclass(frozen=True)
class Run:
    """What is asked. `out`: the file of answers, or None to keep none."""

    suites: Mapping[str, Suite | LocalSuite]
    data: Data
    choice: Choice
    out: Path | None = None

    def rows(self, open_answerer: Callable[[], Answerer], about: Mapping[str, Any]) -> list[Row]:
        """An answer to every question, scored; `about` says what else they depend on.

        Nothing is loaded where all are there already. Raises HRMEdgeError, after which what was
        answered is kept.
        """
        asked = self._questions()
        about = {"id": ABOUT, "choice": asdict(self.choice)} | dict(about)
        with ExitStack() as stack:
            done: dict[Any, Row] = {}
            journal = None
            if self.out is not None:
                check = partial(_alien, about=about, asked=asked)
                journal = stack.enter_context(Journal(self.out, check))
                done = {id: row for id, row in journal.done.items() if id != ABOUT}
                if not journal.done:
                    journal.add(about)
            left = [(q, self.suites[name].most) for name, q in asked.values() if q.id not in done]
            if left:
                answerer = open_answerer()
                told = stack.enter_context(counting(len(asked), "answer", len(asked) - len(left)))
                for question, answer in answerer.answers(left):
                    row = self._row(asked[question.id][0], question, answer)
                    done[question.id] = row
                    if journal is not None:
                        journal.add(row)
                    told(answer.tokens)
            return [done[id] for id in asked]

    def _questions(self) -> dict[str, tuple[str, Question]]:
        """By id: the name of the suite, and the question."""
        found = {}
        for name, suite in self.suites.items():
            for question in self.choice.of(suite.questions(name, self.data)):
                found[question.id] = (name, question)
        return found

    def _row(self, name: str, question: Question, told: Told) -> Row:
        score = self.suites[name].judge(question, told.text)
        shown = {"id": question.id, "suite": name, "asked": _digest(question)}
        shown |= {"text": told.text, "gold": question.gold}
        kept = {k: v for k, v in asdict(score).items() if v is not None and v is not False}
        return shown | kept | {"tokens": told.tokens, "finish_reason": told.finish_reason}


def _digest(question: Question) -> str:
    """Of the prompt and of what is right, by which a question is known again."""
    text = json.dumps([question.prompt, question.condition, question.gold])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _alien(
    row: Mapping[str, Any], about: Mapping[str, Any], asked: Mapping[str, tuple[str, Question]]
) -> str | None:
    """What is wrong with a line of a file of answers to go on from."""
    if row["id"] == ABOUT:
        for key, value in about.items():
            had = row.get(key)
            if _plain(had) != _plain(value):
                return f"its answers are of {key} {had}, not {value}"
        return None
    if not isinstance(row.get("suite"), str) or not isinstance(row.get("value"), int | float):
        return "not a scored answer"
    if row["id"] in asked and row.get("asked") != _digest(asked[row["id"]][1]):
        return f"{row['id']} was another question then"
    return None


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

"""The suites: where their questions are, how they are put, and when an answer is right.

What the paper's own evaluation does, it does here: conditions, shots, the order and the lines of a
prompt, scoring. What is not known of it, docs/evaluation.md lists with what was chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hrm_edge.errors import HRMEdgeError
from hrm_edge.samples import read_prompts

from .data import Data, Place, Row
from .scoring import LETTERS, drop, exact, integer, letter, mathematical

LONGEST = 3072  # tokens of prompt and answer together
SHORT = 128  # tokens of an answer of DROP


@dataclass(frozen=True)
class Question:
    """A prompt and what is right; `choices` is the number of letters that can be answered, or 0."""

    id: str  # "gsm8k/17"
    prompt: str
    gold: Any
    choices: int = 0
    condition: str = "direct"


@dataclass(frozen=True)
class Score:
    """Of one answer, each figure from 0 to 1.

    `value` is as the reference counts: an answer that is no valid letter has one part in as many as
    there are choices. `strict` counts it as wrong.
    """

    value: float
    strict: float
    invalid: bool = False
    em: float | None = None  # DROP's exact match, whose value is F1


Judge = Callable[[Question, str], Score]


@dataclass(frozen=True)
class Suite:
    """One benchmark. `put` makes a row a question; `paper` is the paper's figure in percent."""

    place: Place
    put: Callable[[Row, str], Question]  # the row and the question's id
    judge: Judge
    shots: Callable[[Data], Callable[[Row], str]] | None = None
    condition: str = "direct"
    most: int = LONGEST  # tokens of an answer
    paper: float | None = None
    metric: str = "exact match"

    def questions(self, name: str, data: Data) -> list[Question]:
        """All of them, in the order of the data set. Raises HRMEdgeError if they cannot be had."""
        before = self.shots(data) if self.shots else lambda row: ""
        found = []
        for i, row in enumerate(data.rows(self.place)):
            put = self.put(row, f"{name}/{i}")
            found.append(replace(put, prompt=before(row) + put.prompt, condition=self.condition))
        return found


@dataclass(frozen=True)
class LocalSuite:
    """A JSONL file of one's own, {"instruction", "response", ...}: the same text is right."""

    path: Path
    most: int = LONGEST
    paper: float | None = None
    metric: str = "exact match"

    def questions(self, name: str, data: Data) -> list[Question]:
        """All of them. Raises HRMEdgeError if they cannot be had."""
        _, lines = read_prompts(self.path, "test")
        return [
            Question(
                f"{name}/{i}", line.instruction, line.response, condition=",".join(line.conditions)
            )
            for i, line in enumerate(lines)
        ]

    @staticmethod
    def judge(question: Question, text: str) -> Score:
        """Of the answer `text`."""
        return _plain(exact)(question, text)


def _plain(rule: Callable[[str, Any], float]) -> Judge:
    def judge(question: Question, text: str) -> Score:
        value = rule(text, question.gold)
        return Score(value, value)

    return judge


def _lettered(question: Question, text: str) -> Score:
    found = letter(text, question.gold, question.choices)
    if found is None:
        return Score(1 / question.choices, 0.0, invalid=True)
    return Score(found, found)


def _dropped(question: Question, text: str) -> Score:
    em, f1 = drop(text, question.gold)
    return Score(f1, f1, em=em)


def _chosen(
    text: Callable[[Row], str], options: Callable[[Row], Sequence[str]], right: Callable[[Row], int]
) -> Callable[[Row, str], Question]:
    """A question with lettered options."""

    def put(row: Row, name: str) -> Question:
        given = options(row)
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, given, strict=False)]
        return Question(name, "\n".join([text(row), *lines, "Answer:"]), right(row), len(given))

    return put


def _shown(put: Callable[[Row, str], Question], row: Row) -> str:
    """`row` as an example: the question and its letter."""
    question = put(row, "")
    return f"{question.prompt} {LETTERS[question.gold]}\n\n"


def _first(
    place: Place, count: int, put: Callable[[Row, str], Question]
) -> Callable[[Data], Callable[[Row], str]]:
    """The first `count` rows at `place` as examples before every question."""

    def shots(data: Data) -> Callable[[Row], str]:
        text = "".join(_shown(put, row) for row in _enough(data.rows(place), count, place))
        return lambda row: text

    return shots


def _enough(rows: Sequence[Row], count: int, place: Place) -> Sequence[Row]:
    if len(rows) < count:
        raise HRMEdgeError(f"{place}: has {len(rows)} rows, expected {count} for the examples")
    return rows[:count]


def _mmlu_shots(data: Data) -> Callable[[Row], str]:
    """The five of the subject; three of the one whose examples are too long."""
    texts: dict[str, list[str]] = {}
    for row in data.rows(_MMLU_DEV):
        texts.setdefault(row["subject"], []).append(_shown(_MMLU, row))

    def before(row: Row) -> str:
        subject = row["subject"]
        if subject not in texts:
            raise HRMEdgeError(f"{_MMLU_DEV}: has no examples of {subject!r}")
        return "".join(texts[subject][: 3 if subject == "high_school_european_history" else 5])

    return before


def _drop_shots(data: Data) -> Callable[[Row], str]:
    rows = _enough(data.rows(_DROP_TRAIN), 3, _DROP_TRAIN)
    shown = [f"{_drop(row, '').prompt} {', '.join(_drop_golds(row)[0])}\n\n" for row in rows]
    text = "".join(shown)
    return lambda row: text


def _gsm8k(row: Row, name: str) -> Question:
    told = row["answer"].rpartition("####")[2].strip().replace(",", "")
    try:
        return Question(name, row["question"].strip(), int(told))
    except ValueError:
        raise HRMEdgeError(f"{name}: its answer ends with {told!r}, no whole number") from None


def _math(row: Row, name: str) -> Question:
    return Question(name, row["problem"].strip(), row["solution"])


def _drop(row: Row, name: str) -> Question:
    prompt = f"{row['passage'].strip()}\nQ: {row['question'].strip()}\nA:"
    return Question(name, prompt, _drop_golds(row))


def _drop_golds(row: Row) -> list[list[str]]:
    """Every answer that counts, as lists of spans."""
    kept = row["validated_answers"]
    names = ("number", "date", "spans")
    several = zip(*(kept[name] for name in names), strict=True)
    golds: list[list[str]] = []
    for answer in [row["answer"], *(dict(zip(names, each, strict=True)) for each in several)]:
        gold = _drop_gold(answer)
        if gold not in golds:
            golds.append(gold)
    return golds


def _drop_gold(answer: Mapping[str, Any]) -> list[str]:
    if answer["number"] != "":
        return [str(answer["number"])]
    if answer["spans"]:
        return list(answer["spans"])
    return [" ".join(answer["date"][part] for part in ("day", "month", "year")).strip()]


def _arc_right(row: Row) -> int:
    return list(row["choices"]["label"]).index(row["answerKey"])


_MMLU = _chosen(lambda r: r["question"].strip(), lambda r: r["choices"], lambda r: int(r["answer"]))
_ARC = _chosen(lambda r: r["question"].strip(), lambda r: r["choices"]["text"], _arc_right)
_HELLASWAG = _chosen(lambda r: r["ctx"].strip(), lambda r: r["endings"], lambda r: int(r["label"]))
_WINOGRANDE = _chosen(
    lambda r: r["sentence"].strip(),
    lambda r: [r["option1"], r["option2"]],
    lambda r: int(r["answer"]) - 1,
)
_BOOLQ = _chosen(
    lambda r: f"{r['passage'].strip()}\n{r['question'].strip()}?",
    lambda r: ["Yes", "No"],
    lambda r: int(not r["answer"]),
)
_MMLU_COLUMNS = ("question", "subject", "choices", "answer")
_MMLU_DEV = Place("cais/mmlu", "all", "dev", _MMLU_COLUMNS)
_DROP_COLUMNS = ("passage", "question", "answer", "validated_answers")
_DROP_TRAIN = Place("EleutherAI/drop", "default", "train", _DROP_COLUMNS)
_ARC_COLUMNS = ("question", "choices", "answerKey")
_HELLASWAG_COLUMNS = ("ctx", "endings", "label")
_WINOGRANDE_COLUMNS = ("sentence", "option1", "option2", "answer")
_BOOLQ_COLUMNS = ("question", "passage", "answer")
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

_ARC_SHOTS = Place("allenai/ai2_arc", "ARC-Challenge", "validation", _ARC_COLUMNS)
_HELLASWAG_SHOTS = Place("Rowan/hellaswag", "default", "train", _HELLASWAG_COLUMNS)
_WINOGRANDE_SHOTS = Place("allenai/winogrande", "winogrande_debiased", "train", _WINOGRANDE_COLUMNS)
_BOOLQ_SHOTS = Place("google/boolq", "default", "train", _BOOLQ_COLUMNS)

SUITES: dict[str, Suite] = {
    "gsm8k": Suite(
        Place("openai/gsm8k", "main", "test", ("question", "answer")),
        _gsm8k,
        _plain(integer),
        condition="synth,cot",
        paper=84.7,
    ),
    "math": Suite(
        Place("EleutherAI/hendrycks_math", SUBJECTS, "test", ("problem", "solution")),
        _math,
        _plain(mathematical),
        condition="synth,cot",
        paper=56.5,
        metric="math-verify",
    ),
    "drop": Suite(
        Place("EleutherAI/drop", "default", "validation", _DROP_COLUMNS),
        _drop,
        _dropped,
        _drop_shots,
        most=SHORT,
        paper=82.3,
        metric="F1",
    ),
    "mmlu": Suite(
        Place("cais/mmlu", "all", "test", _MMLU_COLUMNS),
        _MMLU,
        _lettered,
        _mmlu_shots,
        most=1,
        paper=60.7,
    ),
    "arc_c": Suite(
        Place("allenai/ai2_arc", "ARC-Challenge", "test", _ARC_COLUMNS),
        _ARC,
        _lettered,
        _first(_ARC_SHOTS, 25, _ARC),
        most=1,
        paper=81.9,
    ),
    "hellaswag": Suite(
        Place("Rowan/hellaswag", "default", "validation", _HELLASWAG_COLUMNS),
        _HELLASWAG,
        _lettered,
        _first(_HELLASWAG_SHOTS, 10, _HELLASWAG),
        most=1,
    ),
    "winogrande": Suite(
        Place("allenai/winogrande", "winogrande_debiased", "validation", _WINOGRANDE_COLUMNS),
        _WINOGRANDE,
        _lettered,
        _first(_WINOGRANDE_SHOTS, 5, _WINOGRANDE),
        most=1,
    ),
    "boolq": Suite(
        Place("google/boolq", "default", "validation", _BOOLQ_COLUMNS),
        _BOOLQ,
        _lettered,
        _first(_BOOLQ_SHOTS, 5, _BOOLQ),
        most=1,
    ),
}

"""A few questions of every data set, in files as they lie on the hub."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hrm_edge.runtime.suites.tasks import SUBJECTS

Rows = list[dict[str, Any]]


def write(home: Path, name: str, rows: Rows) -> None:
    """`rows` as the parquet file `name`-00000-of-00001."""
    path = home / f"{name}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_all(home: Path) -> None:
    """Every data set that a suite reads."""
    gsm8k = [
        {"question": "  What is 2 + 3? ", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        {"question": "And a thousand and one?", "answer": "#### 1,001"},
        {"question": "Three less than two?", "answer": "#### -1"},
    ]
    write(home / "openai/gsm8k", "main/test", gsm8k)
    for i, subject in enumerate(SUBJECTS):
        row = {"problem": f"Problem {i}", "solution": f"It is $\\boxed{{{i}}}$.", "level": "1"}
        write(home / "EleutherAI/hendrycks_math", f"{subject}/test", [row])
    write(home / "EleutherAI/drop", "data/train", [_drop(f"P{i}", "Q?", f"{i}") for i in range(4)])
    several = _drop("Ann scored, then Bo.", "Who scored? ", "", ["Ann", "Bo"])
    number = _drop("Ann ran 4 miles.", "How far?", "4", others=["four"])
    date = _drop("It was in May.", "When?", "", date={"day": "3", "month": "May", "year": ""})
    write(home / "EleutherAI/drop", "data/validation", [several, number, date])
    write(home / "cais/mmlu", "all/dev", _mmlu_dev())
    mmlu = [
        {"question": "1 + 1?", "subject": "algebra", "choices": list("1234"), "answer": 1},
        {"question": "When?", "subject": "high_school_european_history", **_abcd(3)},
    ]
    write(home / "cais/mmlu", "all/test", mmlu)
    write(home / "allenai/ai2_arc", "ARC-Challenge/validation", [_arc(i) for i in range(26)])
    three = {"question": "Q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}
    write(home / "allenai/ai2_arc", "ARC-Challenge/test", [_arc(99), three | {"answerKey": "3"}])
    hella = [{"ctx": f"He {i}", "endings": list("wxyz"), "label": str(i % 4)} for i in range(12)]
    write(home / "Rowan/hellaswag", "data/train", hella)
    write(home / "Rowan/hellaswag", "data/validation", hella[:2])
    wino = [
        {"sentence": f"{i}: _ fell", "option1": "Ann", "option2": "Bo", "answer": str(i % 2 + 1)}
        for i in range(6)
    ]
    write(home / "allenai/winogrande", "winogrande_debiased/train", wino)
    write(home / "allenai/winogrande", "winogrande_debiased/validation", wino[:2])
    boolq = [
        {"question": f"is {i} even", "passage": " Numbers. ", "answer": i % 2 == 0}
        for i in range(6)
    ]
    write(home / "google/boolq", "data/train", boolq)
    write(home / "google/boolq", "data/validation", boolq[:2])


def _abcd(right: int) -> dict[str, Any]:
    return {"choices": ["a", "b", "c", "d"], "answer": right}


def _mmlu_dev() -> Rows:
    subjects = ("algebra", "high_school_european_history")
    return [
        {"question": f"{subject} {i}?", "subject": subject, **_abcd(i % 4)}
        for subject in subjects
        for i in range(5)
    ]


def _arc(i: int) -> dict[str, Any]:
    choices = {"text": [f"{i} {c}" for c in "pqrs"], "label": list("ABCD")}
    return {"question": f"ARC {i}?", "choices": choices, "answerKey": "ABCD"[i % 4]}


def _drop(
    passage: str,
    question: str,
    number: str,
    spans: list[str] | None = None,
    date: dict[str, str] | None = None,
    others: list[str] | None = None,
) -> dict[str, Any]:
    none = {"day": "", "month": "", "year": ""}
    answer = {"number": number, "date": date or none, "spans": spans or []}
    extra = others or []
    validated = {
        "number": extra,
        "date": [none for _ in extra],
        "spans": [list[str]() for _ in extra],
    }
    types = {"passage": passage, "question": question, "answer": answer}
    return types | {"validated_answers": validated}

"""Many prompts from a JSONL file, one answer each, as many at once as the model has rows.

A line is {"prompt": ...} or {"messages": [...]}; other keys that are options (condition,
max_tokens, temperature, ...) hold for that line alone, and all keys come back with the answer.
Its "id" is its own, or the number of its line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hrm_edge.config import parse_json
from hrm_edge.errors import HRMEdgeError
from hrm_edge.journal import Journal

from ..decoding.answer import Answer, Completion
from ..decoding.rows import together
from ..engine import Model
from ..settings import Settings

Row = dict[str, Any]
OPTIONS = {field.name for field in fields(Settings)}


def read(path: Path) -> list[Row]:
    """All rows. Raises HRMEdgeError naming the first line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None
    rows = [_row(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise HRMEdgeError(f'{path}: has no prompts; expected lines such as {{"prompt": "Hi"}}')
    seen = dict[Any, int]()
    for i, row in enumerate(rows):
        if seen.setdefault(row["id"], i) != i:
            raise HRMEdgeError(f"{path}: two lines have the id {row['id']!r}; give each its own")
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    where = f"{path}:{number}"
    row = parse_json(line, where)
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise HRMEdgeError(f"{where}: expected an object with either prompt or messages")
    if "prompt" in row and not isinstance(row["prompt"], str):
        raise HRMEdgeError(f"{where}: prompt is {row['prompt']!r}, expected text")
    if not isinstance(row.setdefault("id", number), int | str):
        raise HRMEdgeError(f"{where}: id is {row['id']!r}, expected a number or text")
    return row


def journal(path: Path, rows: Sequence[Row]) -> Journal:
    """The file at `path` with answers to some of `rows`, or a new one.

    Raises HRMEdgeError for one with answers to other prompts.
    """
    asked = {row["id"]: row for row in rows}

    def check(answered: Mapping[str, Any]) -> str | None:
        row = asked.get(answered["id"])
        if row is None or any(answered.get(key) != value for key, value in row.items()):
            return "an answer to another prompt than the batch has"
        return None

    return Journal(path, check)


def answers(model: Model, rows: Sequence[Row], options: Mapping[str, Any]) -> Iterator[Row]:
    """Each row with its "text", "finish_reason" and "usage", as soon as that is whole.

    With "error" if it cannot be answered, which ends its row alone.
    """
    refused: list[Row] = []

    def asked() -> Iterator[tuple[int, Answer]]:
        for i, row in enumerate(rows):
            try:
                yield i, _asked(model, row, options)
            except HRMEdgeError as error:
                refused.append(row | {"error": str(error)})

    for i, done in together(model.rows, asked()):
        yield from _taken(refused)
        if isinstance(done, HRMEdgeError):
            yield rows[i] | {"error": str(done)}
        elif isinstance(done, Exception):
            raise done
        else:
            yield rows[i] | _shown(done)
    yield from _taken(refused)


def _taken(rows: list[Row]) -> list[Row]:
    taken = list(rows)
    rows.clear()
    return taken


def _shown(done: Completion) -> Row:
    usage = {"prompt": done.stats.prompt_tokens, "completion": done.stats.completion_tokens}
    return {"text": done.text, "finish_reason": done.finish_reason, "usage": usage}


def _asked(model: Model, row: Row, options: Mapping[str, Any]) -> Answer:
    settings = Settings.of({**options, **{k: row[k] for k in OPTIONS & row.keys()}})
    if "messages" in row:
        ids = model.encode_chat(row["messages"], settings.condition)
    else:
        ids = model.encode(row["prompt"], settings.condition)
    return model.answer(ids, settings)

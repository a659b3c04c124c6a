"""Many prompts from a JSONL file, one answer each, in order.

A line is {"prompt": ...} or {"messages": [...]}; other keys that are options (condition,
max_tokens, temperature, ...) hold for that line alone, and all keys come back with the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hrm_edge.config import parse_json
from hrm_edge.errors import HRMEdgeError

from ..engine import Completion, Model
from ..settings import Settings

Row = dict[str, Any]
OPTIONS = {field.name for field in fields(Settings)}


def read(path: Path) -> list[Row]:
    """All rows. Raises HRMEdgeError naming the first line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None
    rows = [_row(f"{path}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise HRMEdgeError(f'{path}: has no prompts; expected lines such as {{"prompt": "Hi"}}')
    return rows


def _row(where: str, line: str) -> Row:
    row = parse_json(line, where)
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise HRMEdgeError(f"{where}: expected an object with either prompt or messages")
    if "prompt" in row and not isinstance(row["prompt"], str):
        raise HRMEdgeError(f"{where}: prompt is {row['prompt']!r}, expected text")
    return row


def answers(model: Model, rows: Sequence[Row], options: Mapping[str, Any]) -> Iterator[Row]:
    """Each row with its "text", "finish_reason" and "usage"; with "error" if it cannot be answered.

    An error ends its row alone.
    """
    for row in rows:
        try:
            done = _answer(model, row, options)
        except HRMEdgeError as error:
            yield row | {"error": str(error)}
            continue
        usage = {"prompt": done.stats.prompt_tokens, "completion": done.stats.completion_tokens}
        yield row | {"text": done.text, "finish_reason": done.finish_reason, "usage": usage}


def _answer(model: Model, row: Row, options: Mapping[str, Any]) -> Completion:
    settings = Settings.of({**options, **{k: row[k] for k in OPTIONS & row.keys()}})
    if "messages" in row:
        ids = model.encode_chat(row["messages"], settings.condition)
    else:
        ids = model.encode(row["prompt"], settings.condition)
    return Completion.of(list(model.stream_ids(ids, settings)))

"""A file of JSON lines that a run appends to, each whole, and that the next run goes on from."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hrm_edge.config import parse_json
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import locked


class Journal:
    """What is `done`, by "id", and how to add to it. For one process at a time; use with `with`."""

    def __init__(self, path: Path, check: Callable[[Mapping[str, Any]], str | None]) -> None:
        """Read what a run has left at `path`; a line that it could not finish is cut off.

        `check` says what is wrong with a line of it, if anything. Raises HRMEdgeError for that, for
        a file that holds something else, and for one that another process writes.
        """
        self.path, self.done = path, dict[Any, dict[str, Any]]()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise HRMEdgeError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            if not locked(self._file):
                raise HRMEdgeError(f"{path}: another process writes it; name another file")
            self._read(check)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append `row`, whose "id" is not done yet. Raises HRMEdgeError where it cannot."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise HRMEdgeError(
                f"{self.path}: cannot be written ({error.strerror}); the same command goes on "
                "from the lines that are there"
            ) from None
        self.done[row["id"]] = dict(row)

    def _read(self, check: Callable[[Mapping[str, Any]], str | None]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self.done = _rows(self.path, data[:whole], check)
        if whole < len(data):
            os.truncate(self._file.fileno(), whole)
            self._file.seek(whole)


def read(path: Path) -> dict[Any, dict[str, Any]]:
    """The whole lines of a file that a Journal wrote, by "id". Raises HRMEdgeError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error.strerror})") from None
    return _rows(path, data[: data.rfind(b"\n") + 1], lambda row: None)


def _rows(
    path: Path, data: bytes, check: Callable[[Mapping[str, Any]], str | None]
) -> dict[Any, dict[str, Any]]:
    rows: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        where = f"{path}:{number}"
        try:
            row = parse_json(line.decode(), where)
        except UnicodeDecodeError:
            raise HRMEdgeError(f"{where}: not UTF-8; name another file") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), int | str):
            raise HRMEdgeError(f"{where}: not an answer of this command; name another file")
        if wrong := check(row):
            raise HRMEdgeError(f"{where}: {wrong}; name another file")
        rows[row["id"]] = row
    return rows

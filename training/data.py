"""Samples: lines of JSONL (hrm_edge.lines), tokenized once into memory-mapped arrays.

Knows nothing of rows, batches or models.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import new_directory
from hrm_edge.lines import Line, read_lines
from hrm_edge.names import TOKENIZER
from hrm_edge.prompt import ANSWER_END, Tokenizer

SAMPLE = np.dtype([("start", "<i8"), ("prompt", "<i4"), ("length", "<i4"), ("task", "<i4")])
PIECE = 1 << 20  # bytes of a file that are hashed at once
FORMAT = 2  # of the arrays; part of their fingerprint


@dataclass(frozen=True)
class Samples:
    """Tokenized samples: `tokens` is one flat array, `table` says where each sample lies in it.

    table: start, prompt (tokens of the prefix), length (prompt and response, end token included),
    task (index into `tasks`). Both arrays are memory-mapped.
    """

    tokens: np.ndarray
    table: np.ndarray
    tasks: tuple[str, ...]
    dropped_empty: int
    dropped_long: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def slots(self) -> np.ndarray:
        """Input tokens per sample: its last token is only ever a target."""
        return self.table["length"] - 1

    @classmethod
    def open(cls, path: Path) -> "Samples":
        """Open what `tokenize` wrote."""
        info = json.loads((path / "samples.json").read_text())
        return cls(
            np.memmap(path / "tokens.bin", info["dtype"], mode="r"),
            np.load(path / "table.npy", mmap_mode="r"),
            tuple(info["tasks"]),
            info["dropped_empty"],
            info["dropped_long"],
        )


def tokenize(
    path: Path,
    tokenizer_path: Path,
    cache: Path,
    *,
    condition: str = "direct",
    longest: int = 128,
    too_long: str = "error",
) -> Samples:
    """Tokenize `path` into a directory under `cache`, named by what it depends on, or reuse it.

    `longest` is the most input tokens a sample may have; a longer one is an HRMEdgeError naming its
    line (too_long "error"), or is dropped and counted ("drop"). Lines are read one at a time.
    """
    target = cache / _fingerprint(path, tokenizer_path, condition, longest, too_long)
    if not target.is_dir():
        tokenizer = Tokenizer(tokenizer_path)
        with new_directory(target) as partial:
            _write(partial, path, tokenizer, read_lines(path, condition), longest, too_long)
    return Samples.open(target)


def _write(
    partial: Path,
    path: Path,
    tokenizer: Tokenizer,
    lines: Iterable[Line | None],
    longest: int,
    too_long: str,
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    table, tasks, empty, long = array("q"), dict[str, int](), 0, 0
    with (partial / "tokens.bin").open("wb") as file:
        for line in lines:
            if line is None:
                empty += 1
                continue
            prompt = tokenizer.encode(line.prompt)
            ids = prompt + tokenizer.encode(line.response + ANSWER_END)
            if len(ids) - 1 > longest:
                _check_drop(too_long, path, line, len(ids), longest)
                long += 1
                continue
            task = tasks.setdefault(line.task, len(tasks))
            table.extend((file.tell() // dtype.itemsize, len(prompt), len(ids), task))
            file.write(np.asarray(ids, dtype).tobytes())
    if not table:
        raise HRMEdgeError(_nothing(path, empty, long, longest))
    columns = np.frombuffer(table, np.int64).reshape(-1, 4).T  # as SAMPLE
    np.save(partial / "table.npy", np.rec.fromarrays(columns, dtype=SAMPLE).view(np.ndarray))
    info = {"tasks": list(tasks), "dtype": dtype.name}
    info |= {"dropped_empty": empty, "dropped_long": long}
    (partial / "samples.json").write_text(json.dumps(info))


def _nothing(path: Path, empty: int, long: int, longest: int) -> str:
    return (
        f"{path}: no usable line ({empty} with an empty response, {long} longer than {longest} "
        'tokens); expected one {"instruction": ..., "response": ...} object per line'
    )


def _check_drop(too_long: str, path: Path, line: Line, length: int, longest: int) -> None:
    if too_long != "drop":
        raise HRMEdgeError(
            f"{path}, line {line.number}: the sample takes {length - 1} tokens, expected at most "
            f"{longest}; raise data.row_length (and model.max_position_embeddings), or set "
            "data.too_long: drop"
        )


def _fingerprint(path: Path, tokenizer: Path, *settings: object) -> str:
    file = tokenizer / TOKENIZER if tokenizer.is_dir() else tokenizer
    digest = hashlib.sha256(repr((FORMAT, *settings)).encode())
    for source in (path, file):
        try:
            with source.open("rb") as content:
                while piece := content.read(PIECE):
                    digest.update(piece)
        except OSError as error:
            raise HRMEdgeError(f"{source}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:16]

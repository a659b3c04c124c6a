"""Where questions come from: the hub, or a directory that holds what lies there.

Files are read through the `datasets` library; only the columns that are needed, and no code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrm_edge.errors import HRMEdgeError

Row = dict[str, Any]
ENDINGS = ("parquet", "jsonl", "json")


@dataclass(frozen=True)
class Place:
    """A split of a data set on the hub, in one of its configurations or several after another."""

    dataset: str
    config: str | tuple[str, ...]
    split: str
    columns: tuple[str, ...]

    @property
    def configs(self) -> tuple[str, ...]:
        """All of them."""
        return (self.config,) if isinstance(self.config, str) else self.config

    def __str__(self) -> str:
        return f"{self.dataset} ({', '.join(self.configs)}; {self.split})"


class Data:
    """Rows of data sets, from `directory`/DATASET where that is given, else from the hub."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._read: dict[Place, list[Row]] = {}

    def rows(self, place: Place) -> list[Row]:
        """All rows at `place`, with its columns. Raises HRMEdgeError if they cannot be had."""
        if place not in self._read:
            found: list[Row] = []
            for config in place.configs:
                loaded = self._loaded(place, config)
                lacking = [name for name in place.columns if name not in loaded.column_names]
                if lacking:
                    have = ", ".join(loaded.column_names)
                    raise HRMEdgeError(f"{place}: has no column {lacking[0]!r}, only {have}")
                found += loaded.select_columns(list(place.columns)).to_list()
            if not found:
                raise HRMEdgeError(f"{place}: has no rows")
            self._read[place] = found
        return self._read[place]

    def _loaded(self, place: Place, config: str) -> Any:
        import datasets

        datasets.disable_progress_bars()
        try:
            if self._directory is None:
                return datasets.load_dataset(place.dataset, config, split=place.split)
            files, kind = self._files(place, config)
            return datasets.load_dataset(kind, data_files=files, split="train")
        except HRMEdgeError:
            raise
        except Exception as error:  # of a dozen libraries
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
            raise HRMEdgeError(
                f"{place}: cannot be had ({reason}); with what lies there in a directory: "
                "--data-dir DIR"
            ) from None

    def _files(self, place: Place, config: str) -> tuple[list[str], str]:
        """Files of the split, as repositories of the hub name them, and what reads them."""
        assert self._directory is not None
        home = self._directory / place.dataset
        for folder in _folders(home, config):
            for ending in ENDINGS:
                names = (f"{place.split}-*.{ending}", f"{place.split}.{ending}")
                files = sorted(str(path) for name in names for path in folder.glob(name))
                if files:
                    return files, "parquet" if ending == "parquet" else "json"
        raise HRMEdgeError(
            f"{home}: no file of {place.split} in {config}/ or data/; hf download {place.dataset} "
            f"--repo-type dataset --local-dir {home} fetches them"
        )


def _folders(home: Path, config: str) -> Sequence[Path]:
    """Where a configuration may lie: in a folder of its name, or all in one."""
    return [home / config, home / "data" / config, home / config / "data", home / "data", home]

"""Resumable states of a run (torch.distributed.checkpoint), written atomically; the newest stay.

A state is a directory `step-00001000` with the model, the optimizer (moving averages included) and
`run.json`: progress and architecture. A directory appears only when complete,
so a process killed at any moment leaves the previous state in place.
"""

import errno
import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hrm_edge.config import read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import writing
from hrm_edge.model import HRMText

from .distributed import World
from .optimizer import AdamATan2

PREFIX = "step-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, its place in the stream of rows, tokens seen, and
    seconds spent training.
    """

    step: int = 0
    window: int = 0
    row: int = 0
    tokens: int = 0
    seconds: float = 0.0


def states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(folder.glob(PREFIX + "*"))


def save_state(
    folder: Path,
    model: HRMText,
    optimizer: AdamATan2,
    progress: Progress,
    identity: dict[str, Any],
    keep: int,
    world: World,
) -> Path:
    """Write a state under `folder` and remove all but the newest `keep`. All processes call.

    `identity`: what a resumed run must have in common with this one, as JSON.

    Raises HRMEdgeError if the disk is full; the previous states remain.
    """
    target = folder / f"{PREFIX}{progress.step:08d}"
    partial = folder / f".{target.name}.partial"
    with writing(target, "the states before it are untouched"):
        if world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        world.barrier()
        _save(partial, model, optimizer, world)
        world.barrier()
        if world.is_first:
            _finish(partial, target, {"progress": asdict(progress), "identity": identity})
    if world.is_first:
        for old in states(folder)[: -max(1, keep)]:
            shutil.rmtree(old, ignore_errors=True)
    world.barrier()
    return target


def _save(partial: Path, model: HRMText, optimizer: AdamATan2, world: World) -> None:
    weights, moments = get_state_dict(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a world of one is meant
            save(
                {"model": weights, "optimizer": moments},
                checkpoint_id=partial,
                no_dist=world.size == 1,
            )
    except (CheckpointException, OSError) as error:
        cause = _as_os_error(error, partial, model)
        shutil.rmtree(partial, ignore_errors=True)
        raise cause from error


def _as_os_error(error: BaseException, partial: Path, model: HRMText) -> OSError:
    """The system's error behind a failed save; torch's own writer reports a full disk as another
    error, so that one is told by the room left for a state (four fp32 values a parameter).
    """
    failures = error.failures.values() if isinstance(error, CheckpointException) else [(error, 0)]
    causes = [cause for cause, _ in failures]
    found = next((cause for cause in causes if isinstance(cause, OSError)), None)
    if found is not None:
        return found
    written = sum(file.stat().st_size for file in partial.glob("*"))
    needed = 16 * sum(p.numel() for p in model.parameters())
    if shutil.disk_usage(partial).free + written < needed:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return OSError(errno.EIO, " ".join(str(causes[0]).split()))


def _finish(partial: Path, target: Path, header: dict[str, Any]) -> None:
    (partial / "run.json").write_text(json.dumps(header, indent=2) + "\n")
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_state(
    state: Path,
    model: HRMText,
    optimizer: AdamATan2,
    identity: dict[str, Any],
    world: World,
) -> Progress:
    """Fill model and optimizer in place, on any number of processes; return the progress.

    Raises HRMEdgeError if the state has another `identity`.
    """
    header = read_json_object(state / "run.json")
    _check_same(state, header["identity"], identity)
    weights, moments = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(held, checkpoint_id=state, no_dist=world.size == 1)
    set_state_dict(
        model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"]
    )
    return Progress(**header["progress"])


def _check_same(state: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in new:
        if old.get(key) != new[key]:
            raise HRMEdgeError(
                f"{state} was trained with {key} {old.get(key)!r}, and the config now gives "
                f"{new[key]!r}; resume with the same model, or train into another directory"
            )

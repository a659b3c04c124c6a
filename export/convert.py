"""`export`: one checkpoint in, one bundle out, whole or not at all."""

from pathlib import Path

from hrm_edge.bundle import Bundle
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import new_directory
from hrm_edge.hub import resolve

from .recipe import Recipe
from .target_onnx import write_onnx

TARGETS = {"onnx": write_onnx}


def export(
    checkpoint: str | Path,
    out: str | Path,
    target: str = "onnx",
    recipe: Recipe | None = None,
    *,
    max_seq_len: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    force: bool = False,
) -> Bundle:
    """Convert a checkpoint directory or Hugging Face id into a bundle at `out`.

    `max_seq_len` bounds prompt and answer together, in tokens (default: what the model allows).
    Raises HRMEdgeError for anything amiss with the checkpoint, the options or the disk; `out` is
    then as it was.
    """
    if target not in TARGETS:
        raise HRMEdgeError(f"target is {target!r}, expected one of {', '.join(TARGETS)}")
    out = Path(out)
    with new_directory(out, force) as partial:
        opened = Checkpoint.open(resolve(checkpoint, revision, offline))
        length = _max_seq_len(opened, max_seq_len)
        TARGETS[target](opened, partial, recipe or Recipe(), length)
        Bundle.open(partial)
    return Bundle.open(out)


def _max_seq_len(checkpoint: Checkpoint, asked: int | None) -> int:
    most = checkpoint.config.max_position_embeddings
    if asked is not None and not 2 <= asked <= most:
        raise HRMEdgeError(f"max_seq_len is {asked}, expected 2 to {most} (the model's positions)")
    return asked or most

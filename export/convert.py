"""`export`: one checkpoint in, one bundle out, whole or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from hrm_edge.bundle import PROMPT_FORMAT, Bundle
from hrm_edge.chat_template import read_chat_template, written_out
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import new_directory
from hrm_edge.hub import resolve
from hrm_edge.quiet import quiet_imports

from .evaluate.report import Gate, report
from .quantize.plan import Plan, make_plan
from .quantize.rotation import rotate
from .targets import ExecutorchTarget, GGUFTarget, Target, TargetOptions, named_target

Writer = Callable[[Plan, Path, int], None]  # of a plan, into a directory, for max_seq_len

DEFAULT_GATE = Gate()


def export(
    checkpoint: str | Path,
    out: str | Path,
    target: Target | str = "onnx",
    *,
    max_seq_len: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    force: bool = False,
    gate: Gate | None = DEFAULT_GATE,
    work: str | Path | None = None,
    **options: Unpack[TargetOptions],
) -> Bundle:
    """Convert a checkpoint directory, Hugging Face id or GGUF file into a bundle at `out`.

    `target` says what is made (targets.py), or names it: "onnx", "executorch" or "gguf" with
    `options`, such as bits=4, group_size=128, kv_bits=8. `max_seq_len` bounds prompt and answer
    together, in tokens (default: what the model allows). What calibration has done is kept in
    `work`, so that an interrupted export can go on. `gate` says what the quality is measured on
    and what is demanded of it (None: not measured). Raises HRMEdgeError for anything amiss with
    the checkpoint, the options or the disk, and for a bundle that falls short of `gate`; `out` is
    then as it was.
    """
    if isinstance(target, str):
        target = named_target(target, **options)
    elif options:
        raise HRMEdgeError(f"{next(iter(options))} is given beside a target; put it in the target")
    write, out = _writer(target), Path(out)
    with new_directory(out, force) as directory, TemporaryDirectory() as scratch:
        opened = _open(resolve(checkpoint, revision, offline), Path(scratch))
        length = _max_seq_len(opened, max_seq_len)
        target.check(opened.config, length)
        turned = rotate(opened) if target.recipe.rotate else opened
        write(make_plan(turned, target, Path(work) if work else None), directory, length)
        written = Bundle.open(directory)
        manifest = replace(written.manifest, prompt_format=_prompt_format(opened.path))
        if gate is not None:
            manifest = replace(manifest, quality=report(opened, written, gate))
            gate.check(manifest.quality)
        manifest.write(directory)
    return Bundle.open(out)


def _writer(target: Target) -> Writer:
    """Imported when it is needed: each writer has libraries of its own."""
    if isinstance(target, ExecutorchTarget):
        with quiet_imports():
            import executorch  # noqa: F401, before torch: the extra to install is named after it

            from .to_executorch.write import write_executorch
        return write_executorch
    if isinstance(target, GGUFTarget):
        from .to_gguf.write import write_gguf

        return write_gguf
    from .to_onnx.write import write_onnx

    return write_onnx


def _prompt_format(checkpoint: Path) -> Mapping[str, Any] | None:
    template = read_chat_template(checkpoint)
    return PROMPT_FORMAT if template is None else written_out(template)


def _open(source: Path, scratch: Path) -> Checkpoint:
    if source.is_dir():
        return Checkpoint.open(source)
    from .to_gguf.read import open_gguf

    return open_gguf(source, scratch)


def _max_seq_len(checkpoint: Checkpoint, asked: int | None) -> int:
    most = checkpoint.config.max_position_embeddings
    if asked is not None and not 2 <= asked <= most:
        raise HRMEdgeError(f"max_seq_len is {asked}, expected 2 to {most} (the model's positions)")
    return asked or most

"""`export`: one checkpoint in, one bundle out, whole or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hrm_edge.bundle import PROMPT_FORMAT, Bundle
from hrm_edge.chat_template import read_chat_template, written_out
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import new_directory
from hrm_edge.hub import resolve
from hrm_edge.quiet import quiet_imports

from .recipe import Recipe
from .report import Gate, report

TARGETS = ("onnx", "executorch", "gguf")
DEFAULT_GATE = Gate()


def export(
    checkpoint: str | Path,
    out: str | Path,
    target: str = "onnx",
    *,
    bits: int = 4,
    group_size: int = 128,
    head_bits: int = 8,
    embedding_bits: int = 4,
    kv_bits: int | None = None,
    dtype: str = "fp32",
    gguf_type: str = "q4_0",
    max_seq_len: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    force: bool = False,
    gate: Gate | None = DEFAULT_GATE,
    recipe: Recipe | None = None,
    work: str | Path | None = None,
    norm_op: bool = False,
    contexts: Sequence[int] = (),
) -> Bundle:
    """Convert a checkpoint directory, Hugging Face id or GGUF file into a bundle at `out`.

    Bits and group size are those of `Recipe` and concern ONNX and ExecuTorch; `kv_bits` is 8 by
    default for ONNX and only 32 for ExecuTorch. For ONNX a whole `recipe` replaces
    them, and what it calibrates is kept in `work`, so that an interrupted export can go on.
    `gguf_type` names the type of a GGUF's tensors. `max_seq_len` bounds prompt and answer together,
    in tokens (default: what the model allows). `contexts`, for ExecuTorch, are shorter lengths
    with a program, and a smaller KV cache, of their own. `norm_op`, for ExecuTorch, calls MagicNorm
    as a C++ op whose library a runtime then needs (magic_norm_op.py). `gate` says what the quality
    is measured on and what is demanded of it (None: not measured). Raises HRMEdgeError for anything
    amiss with the checkpoint, the options or the disk, and for a bundle that falls short of `gate`;
    `out` is then as it was.
    """
    for name, given in (("norm_op", norm_op), ("contexts", contexts)):
        if given and target != "executorch":
            raise HRMEdgeError(
                f"{name} is of ExecuTorch bundles (-t executorch); target is {target!r}"
            )
    if target == "onnx":
        kv_bits = 8 if kv_bits is None else kv_bits
        recipe = recipe or Recipe(bits, group_size, head_bits, embedding_bits, kv_bits, dtype)
        write = partial(_write_onnx, recipe=recipe, work=work)
    elif target == "executorch":
        with quiet_imports():
            import executorch  # noqa: F401, before torch: the extra to install is named after it

            from .target_executorch import write_executorch

        if dtype != "fp32":
            raise HRMEdgeError(f"dtype is {dtype!r}; an ExecuTorch bundle computes in fp32")
        kv_bits = 32 if kv_bits is None else kv_bits
        recipe = recipe or Recipe(bits, group_size, head_bits, embedding_bits, kv_bits)
        write = partial(write_executorch, recipe=recipe, norm_op=norm_op, contexts=contexts)
    elif target == "gguf":
        from .target_gguf import write_gguf

        write = partial(write_gguf, type_name=gguf_type)
    else:
        raise HRMEdgeError(f"target is {target!r}, expected one of {', '.join(TARGETS)}")
    out = Path(out)
    with new_directory(out, force) as directory, TemporaryDirectory() as scratch:
        opened = _open(resolve(checkpoint, revision, offline), Path(scratch))
        write(opened, directory, max_seq_len=_max_seq_len(opened, max_seq_len))
        written = Bundle.open(directory)
        manifest = replace(written.manifest, prompt_format=_prompt_format(opened.path))
        if gate is not None:
            manifest = replace(manifest, quality=report(opened, written, gate))
            gate.check(manifest.quality)
        manifest.write(directory)
    return Bundle.open(out)


def _prompt_format(checkpoint: Path) -> Mapping[str, Any] | None:
    template = read_chat_template(checkpoint)
    return PROMPT_FORMAT if template is None else written_out(template)


def _write_onnx(
    checkpoint: Checkpoint,
    out: Path,
    *,
    recipe: Recipe,
    work: str | Path | None,
    max_seq_len: int,
) -> None:
    from .plan import make_plan
    from .rotation import rotate
    from .target_onnx import write_onnx

    turned = rotate(checkpoint) if recipe.rotate else checkpoint
    plan = make_plan(turned, recipe, Path(work) if work else None)
    write_onnx(turned, out, plan=plan, max_seq_len=max_seq_len)


def _open(source: Path, scratch: Path) -> Checkpoint:
    if source.is_dir():
        return Checkpoint.open(source)
    from .gguf_checkpoint import open_gguf

    return open_gguf(source, scratch)


def _max_seq_len(checkpoint: Checkpoint, asked: int | None) -> int:
    most = checkpoint.config.max_position_embeddings
    if asked is not None and not 2 <= asked <= most:
        raise HRMEdgeError(f"max_seq_len is {asked}, expected 2 to {most} (the model's positions)")
    return asked or most

"""`hrm-edge export`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrm_edge.config import KV_SHARES
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import replacing
from hrm_edge.names import GGUF_MODEL, TOKENIZER, is_linear
from hrm_edge.number_list import Numbers

from .recipe import METHODS, Calibration, Recipe, named_method

if TYPE_CHECKING:
    from hrm_edge.bundle import Bundle
    from hrm_edge.config import HRMTextConfig

    from .targets import Target

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint")
@click.option(
    "-o", "--out", required=True, type=FILE, help="The new bundle; with -t gguf also FILE.gguf."
)
@click.option(
    "-t",
    "--target",
    type=click.Choice(["onnx", "executorch", "gguf"]),
    default="onnx",
    show_default=True,
)
@click.option(
    "--bits",
    default=Recipe.bits,
    show_default=True,
    help="Of the stacks' linears: 4, 8, or 32 for none.",
)
@click.option(
    "--group-size",
    default=Recipe.group_size,
    show_default=True,
    help="Weights that share a scale.",
)
@click.option(
    "--head-bits",
    default=Recipe.head_bits,
    show_default=True,
    help="Of the output head: 4, 8 or 32.",
)
@click.option(
    "--embedding-bits",
    default=Recipe.embedding_bits,
    show_default=True,
    help="Of the table: 4, 8 or 32.",
)
@click.option("--kv-bits", type=int, help="Of the KV cache: 32, 8 (default) or 4; .pte: 32.")
@click.option("--kv-h-bits", type=int, help="Of the H passes' part of it: 8 with --kv-bits 4.")
@click.option(
    "--dtype",
    default=Recipe.dtype,
    show_default=True,
    help="Of activations: fp32, or fp16 (16 bits, not 32).",
)
@click.option(
    "--method", default="rtn", show_default=True, help=f"{', '.join(METHODS)} (-asym: zero points)."
)
@click.option("--rotate", is_flag=True, help="Turn the residual stream by a Hadamard matrix first.")
@click.option("--target-bits", type=float, help="8 bits where they help most, to this mean: 4.25.")
@click.option(
    "--calibrate-kv/--no-calibrate-kv",
    default=None,
    help="Fit the KV cache's scales to the calibration; default: with --kv-bits 4.",
)
@click.option("--calibration", type=FILE, help="JSONL; default: shipped.")
@click.option(
    "--calibration-tokens",
    default=Calibration.tokens,
    show_default=True,
    help="Most to look at.",
)
@click.option("--work", type=FILE, help="Keeps what gptq has done, to go on.")
@click.option("--type", "gguf_type", default="q4_0", show_default=True, help="Of a GGUF's tensors.")
@click.option(
    "--context",
    "contexts",
    type=int,
    multiple=True,
    help="A shorter .pte too, with a smaller KV cache and the same weights; may be repeated.",
)
@click.option(
    "--kv-share",
    type=click.Choice(KV_SHARES),
    default="none",
    help="In a .pte: shared cache slots.",
)
@click.option("--l-cycles", type=Numbers(), help="In a .pte: L passes of each cycle of an answer.")
@click.option("--norm-op", is_flag=True, help="In a .pte: MagicNorm as the C++ op hrm::magic_norm.")
@click.option("--max-seq-len", type=int, help="Prompt and answer together; less than the model's.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use only what the hub's cache holds.")
@click.option("--eval-data", type=FILE, help="JSONL to measure quality on.")
@click.option("--max-kl", type=float, help="Refuse above this mean KL divergence (nats).")
@click.option("--min-top1", type=float, help="Refuse below this share of equal top tokens (0-1).")
@click.option("--fast-kl", type=float, help="Most KL divergence of the plan that --fast takes.")
@click.option("--fast-top1", type=float, help="Least share of equal top tokens of that plan (0-1).")
@click.option("--sources/--no-sources", default=None, help="Measure each source of error alone.")
@click.option("--no-report", is_flag=True, help="Do not measure the quality.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def command(
    checkpoint: str,
    out: Path,
    target: str,
    work: Path | None,
    max_seq_len: int | None,
    revision: str | None,
    offline: bool,
    eval_data: Path | None,
    max_kl: float | None,
    min_top1: float | None,
    fast_kl: float | None,
    fast_top1: float | None,
    sources: bool | None,
    no_report: bool,
    force: bool,
    **options: Any,
) -> None:
    """Convert CHECKPOINT, a directory or a Hugging Face id, into a bundle for a device."""
    from .convert import export
    from .evaluate.report import Gate
    from .evaluate.table import quality_lines

    chosen = _target(target, options)
    if (fast_kl, fast_top1) != (None, None) and target != "onnx":
        raise click.UsageError(f"--fast-kl and --fast-top1 are for -t onnx, not {target}")
    gate = Gate(eval_data, max_kl, min_top1, sources=sources, fast_kl=fast_kl, fast_top1=fast_top1)
    if no_report and (gate.demands or (fast_kl, fast_top1) != (None, None)):
        raise click.UsageError(
            "--max-kl, --min-top1, --fast-kl and --fast-top1 need the report; leave out --no-report"
        )
    made = functools.partial(
        export,
        checkpoint,
        target=chosen,
        work=work,
        max_seq_len=max_seq_len,
        revision=revision,
        offline=offline,
        gate=None if no_report else gate,
    )
    if target == "gguf" and out.suffix == ".gguf":
        _one_file(made, out, force)
        return
    bundle = made(out, force=force)
    if target == "onnx" and (padded := _padded(bundle.manifest.model, chosen.recipe)):
        group = chosen.recipe.group_size
        click.echo(f"group size {group} does not divide rows of {padded}: they are padded")
    if not no_report:
        click.echo("\n".join(quality_lines(bundle.manifest.quality)))
    if TOKENIZER not in bundle.manifest.files:
        click.echo(
            f"{checkpoint} has no {TOKENIZER}, so {out} has none: bench and token ids from Python "
            "work; generate, chat and serve need it beside the model",
            err=True,
        )
    size = sum(file.size for file in bundle.manifest.files.values())
    model = out / GGUF_MODEL
    then = _for_llama(model, bundle) if target == "gguf" else f"hrm-edge generate {out} 'Hello'"
    click.echo(f"{out}: {target}, {size / 2**20:.1f} MiB. Try: {then}")


def _one_file(made: "Callable[..., Bundle]", out: Path, force: bool) -> None:
    """Write the GGUF file alone, whole or not at all."""
    if out.is_dir() or (out.exists() and not force):
        raise HRMEdgeError(f"{out} exists; choose another name, or replace it with --force")
    with replacing(out) as partial:
        bundle = made(partial.parent / "bundle")
        (bundle.path / GGUF_MODEL).rename(partial)
    size = out.stat().st_size / 2**20
    click.echo(f"{out}: gguf, {size:.1f} MiB. Try: {_for_llama(out, bundle)}")


def _for_llama(model: Path, bundle: "Bundle") -> str:
    """The command by which llama.cpp reads a prompt as a prefix (docs/llama-cpp.md)."""
    most = bundle.manifest.max_seq_len
    return f"llama-server -m {model} -b {most} -ub {most} -np 1 --no-cache-prompt"


def _target(name: str, options: dict[str, Any]) -> "Target":
    """The target with the options that stand on the command line; the others are its defaults."""
    from .targets import named_target, refuse_foreign

    given = {}
    context = click.get_current_context()
    for option in context.command.params:
        key = option.name or ""
        if key in options and context.get_parameter_source(key) is _COMMANDLINE:
            refuse_foreign("calibration" if key in _CALIBRATION else key, name, option.opts[0])
            given[key] = options[key]
    data, tokens = (given.pop(key, None) for key in _CALIBRATION)
    if data is not None or tokens is not None:
        given["calibration"] = Calibration(data, Calibration.tokens if tokens is None else tokens)
    if "method" in given:
        given["method"] = named_method(given["method"])
    return named_target(name, **given)


_COMMANDLINE = click.core.ParameterSource.COMMANDLINE
_CALIBRATION = ("calibration", "calibration_tokens")


def _padded(config: "HRMTextConfig", recipe: Recipe) -> str:
    """The lengths of the linears' rows that end in a group that is not full; "" if none does."""
    if recipe.bits >= 16:
        return ""
    shapes = config.tensor_shapes()
    rows = {shapes[name][1] for name in shapes if is_linear(name)}
    return " and ".join(str(k) for k in sorted(rows) if k % recipe.group_size)

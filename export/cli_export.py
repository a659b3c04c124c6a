"""`hrm-edge export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hrm_edge.errors import HRMEdgeError

if TYPE_CHECKING:
    from hrm_edge.config import HRMTextConfig

OF_RECIPES = (
    "bits",
    "group_size",
    "head_bits",
    "embedding_bits",
    "kv_bits",
    "kv_h_bits",
    "dtype",
    "method",
    "rotate",
    "target_bits",
    "calibrate_kv",
    "calibration",
    "calibration_tokens",
    "work",
)


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The new bundle.")
@click.option(
    "-t",
    "--target",
    type=click.Choice(["onnx", "executorch", "gguf"]),
    default="onnx",
    show_default=True,
)
@click.option(
    "--bits", default=4, show_default=True, help="Of the stacks' linears: 4, 8, or 32 for none."
)
@click.option("--group-size", default=128, show_default=True, help="Weights that share a scale.")
@click.option("--head-bits", default=8, show_default=True, help="Of the output head: 4, 8 or 32.")
@click.option("--embedding-bits", default=4, show_default=True, help="Of the table: 4, 8 or 32.")
@click.option("--kv-bits", type=int, help="Of the KV cache: 32, 8 (default) or 4; .pte: 32.")
@click.option("--kv-h-bits", type=int, help="Of the H passes' part of it: 8 with --kv-bits 4.")
@click.option(
    "--dtype",
    default="fp32",
    show_default=True,
    help="Of activations: fp32, or fp16 (16 bits, not 32).",
)
@click.option(
    "--method", default="rtn", show_default=True, help="rtn, hqq, gptq; -asym: zero points."
)
@click.option("--rotate", is_flag=True, help="Turn the residual stream by a Hadamard matrix first.")
@click.option("--target-bits", type=float, help="8 bits where they help most, to this mean: 4.25.")
@click.option(
    "--calibrate-kv/--no-calibrate-kv",
    default=None,
    help="Fit the KV cache's scales to the calibration; default: with --kv-bits 4.",
)
@click.option("--calibration", type=click.Path(path_type=Path), help="JSONL; default: shipped.")
@click.option("--calibration-tokens", default=4096, show_default=True, help="Most to look at.")
@click.option("--work", type=click.Path(path_type=Path), help="Keeps what gptq has done, to go on.")
@click.option("--type", "gguf_type", default="q4_0", show_default=True, help="Of a GGUF's tensors.")
@click.option(
    "--context",
    "contexts",
    type=int,
    multiple=True,
    help="A shorter .pte too, with a smaller KV cache and the same weights; may be repeated.",
)
@click.option("--norm-op", is_flag=True, help="In a .pte: MagicNorm as the C++ op hrm::magic_norm.")
@click.option("--max-seq-len", type=int, help="Prompt and answer together; less than the model's.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use only what the hub's cache holds.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="JSONL to measure quality on.")
@click.option("--max-kl", type=float, help="Refuse above this mean KL divergence (nats).")
@click.option("--min-top1", type=float, help="Refuse below this share of equal top tokens (0-1).")
@click.option("--sources/--no-sources", default=None, help="Measure each source of error alone.")
@click.option("--no-report", is_flag=True, help="Do not measure the quality.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def command(
    checkpoint: str,
    out: Path,
    target: str,
    bits: int,
    group_size: int,
    head_bits: int,
    embedding_bits: int,
    kv_bits: int | None,
    kv_h_bits: int | None,
    dtype: str,
    method: str,
    rotate: bool,
    target_bits: float | None,
    calibrate_kv: bool | None,
    calibration: Path | None,
    calibration_tokens: int,
    work: Path | None,
    gguf_type: str,
    contexts: tuple[int, ...],
    norm_op: bool,
    max_seq_len: int | None,
    revision: str | None,
    offline: bool,
    eval_data: Path | None,
    max_kl: float | None,
    min_top1: float | None,
    sources: bool | None,
    no_report: bool,
    force: bool,
) -> None:
    """Convert CHECKPOINT, a directory or a Hugging Face id, into a bundle for a device."""
    from .cli_eval import quality_lines
    from .convert import export
    from .recipe import Calibration, Recipe, named_method
    from .report import Gate

    _refuse_given(OF_RECIPES if target == "gguf" else ("gguf_type",), target)
    if kv_bits is None:
        kv_bits = 32 if target == "executorch" else 8
    recipe = Recipe(
        bits,
        group_size,
        head_bits,
        embedding_bits,
        kv_bits,
        dtype,
        named_method(method),
        rotate,
        target_bits,
        calibrate_kv,
        Calibration(calibration, calibration_tokens),
        kv_h_bits,
    )
    gate = Gate(eval_data, max_kl, min_top1, sources=sources)
    if no_report and gate.demands:
        raise click.UsageError("--max-kl and --min-top1 need the report; leave out --no-report")

    bundle = export(
        checkpoint,
        out,
        target,
        recipe=recipe,
        work=work,
        gguf_type=gguf_type,
        norm_op=norm_op,
        contexts=contexts,
        max_seq_len=max_seq_len,
        revision=revision,
        offline=offline,
        force=force,
        gate=None if no_report else gate,
    )
    if target == "onnx" and bits < 16 and (padded := _padded(bundle.manifest.model, group_size)):
        click.echo(f"group size {group_size} does not divide rows of {padded}: they are padded")
    if not no_report:
        click.echo("\n".join(quality_lines(bundle.manifest.quality)))
    size = sum(file.size for file in bundle.manifest.files.values())
    then = f"hrm-edge generate {out} 'Hello'" if target != "gguf" else f"hrm-edge inspect {out}"
    click.echo(f"{out}: {target}, {size / 2**20:.1f} MiB. Try: {then}")


def _refuse_given(options: tuple[str, ...], target: str) -> None:
    """Raise HRMEdgeError if one of `options`, which say nothing to `target`, stands there."""
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in options and source is click.core.ParameterSource.COMMANDLINE:
            then = "--type says how its tensors are stored" if target == "gguf" else "use -t gguf"
            raise HRMEdgeError(f"{option.opts[0]} does not apply to -t {target}; {then}")


def _padded(config: "HRMTextConfig", group_size: int) -> str:
    """The lengths of the linears' rows that end in a group that is not full; "" if none does."""
    shapes = config.tensor_shapes()
    rows = {shapes[name][1] for name in shapes if "_module" in name}
    return " and ".join(str(k) for k in sorted(rows) if k % group_size)

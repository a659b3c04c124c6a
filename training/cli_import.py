"""`hrm-edge import`."""

from pathlib import Path

import click


@click.command(name="import")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Checkpoint.")
@click.option("--epoch", type=int, help="Which fsdp2_epoch_N; default the last.")
@click.option("--ema/--no-ema", default=True, help="Moving averages (default) or raw weights.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder with tokenizer.json.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True
)
@click.option("--force", is_flag=True, help="Replace an existing checkpoint.")
def command(
    run: Path,
    out: Path,
    epoch: int | None,
    ema: bool,
    tokenizer: Path | None,
    dtype: str,
    force: bool,
) -> None:
    """Turn a run of the reference trainer (fsdp2_epoch_N) into a checkpoint directory."""
    from .import_reference import import_reference

    path = import_reference(
        run, out, epoch=epoch, average=ema, tokenizer=tokenizer, dtype=dtype, force=force
    )
    click.echo(path)

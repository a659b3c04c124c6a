"""`hrm-edge train`."""

from pathlib import Path

import click


@click.command(name="train")
@click.argument("config")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="JSONL to train on.")
@click.option("--valid", type=click.Path(path_type=Path), help="Held-out JSONL to evaluate on.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The run's directory."
)
@click.option("--init", type=click.Path(path_type=Path), help="Checkpoint to fine-tune.")
@click.option("--qat", is_flag=True, help="Learn what --init answers, with 4-bit weights.")
@click.option("--qat-group-size", default=128, show_default=True, help="The export's group size.")
@click.option("--resume", is_flag=True, help="Continue from the newest state under --out.")
@click.option("--quiet", is_flag=True, help="Print only the checkpoint's path.")
def command(
    config: str,
    data: Path,
    valid: Path | None,
    out: Path,
    init: Path | None,
    qat: bool,
    qat_group_size: int,
    resume: bool,
    quiet: bool,
) -> None:
    """Train a model. CONFIG is a YAML file or a preset: tiny, finetune, B, L, XL.

    Under torchrun the same command shards the model over all processes.
    """
    from .loop import train

    group = qat_group_size if qat else 0
    done = train(config, data, out, valid=valid, start=init, resume=resume, quiet=quiet, qat=group)
    click.echo(done)

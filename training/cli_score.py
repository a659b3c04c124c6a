"""`hrm-edge score`: how well a checkpoint answers held-out questions, in PyTorch."""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command(name="score")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Held-out JSONL.")
@click.option("--condition", default="direct", show_default=True, help="For lines without one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(checkpoint: Path, data: Path, condition: str, as_json: bool) -> None:
    """Exact match, token accuracy and loss of CHECKPOINT per task of a JSONL file."""
    from .evaluate import score

    scores = {name: asdict(found) for name, found in score(checkpoint, data, condition).items()}
    if as_json:
        click.echo(json.dumps(scores, indent=2))
        return
    width = max(len(name) for name in scores)
    click.echo(f"{'task':{width}}  samples  exact match  token accuracy    loss")
    for name, found in scores.items():
        click.echo(
            f"{name:{width}}  {found['samples']:7}  {found['exact_match']:11.1%}"
            f"  {found['token_accuracy']:14.1%}  {found['loss']:6.4f}"
        )

"""`hrm-edge rm`: removes the bundles that were made of a shipped model."""

import shutil

import click

from hrm_edge import shipped
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import writing


@click.command()
@click.argument("name")
def command(name: str) -> None:
    """Remove the bundles that were made of the shipped model NAME. The next use makes one again."""
    chosen = [path for path in shipped.bundles() if path.name == name]
    if not chosen:
        raise HRMEdgeError(
            f"{name}: no bundle of that name is kept; hrm-edge list shows them (checkpoints in the "
            "hub's cache are huggingface_hub's to remove)"
        )
    for path in chosen:
        with writing(path):
            shutil.rmtree(path.parent)
        click.echo(f"removed {path}")

"""`hrm-edge list`: the models at hand: those that ship inside, their bundles, the hub's cache."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from hrm_edge import shipped
from hrm_edge.names import CONFIG


@click.command()
def command() -> None:
    """List the models at hand: name, size, where it lies."""
    for name, size, path in found():
        click.echo(f"{name:32} {size / 1e6:9.1f} MB  {path}")


def found() -> Iterator[tuple[str, int, Path]]:
    """(name, bytes, path) of each model that ships, each bundle made of one, and each HRM-Text
    checkpoint in the hub's cache.
    """
    for name in shipped.MODELS:
        path = shipped.inside(name)
        if path is not None:
            kind = "" if shipped.checkpoint(name) else ", bundle"
            yield f"{name}{kind}", _size(path), path
    for path in shipped.bundles():
        yield f"{path.name}, bundle", _size(path), path
    yield from _of_the_hub()


def _of_the_hub() -> Iterator[tuple[str, int, Path]]:
    with contextlib.suppress(ModuleNotFoundError):
        from huggingface_hub import CacheNotFound, scan_cache_dir

        with contextlib.suppress(CacheNotFound):
            for repo in sorted(scan_cache_dir().repos, key=lambda repo: repo.repo_id):
                for revision in repo.revisions:
                    config = revision.snapshot_path / CONFIG
                    if config.is_file() and "hrm_text" in config.read_text(errors="replace"):
                        yield repo.repo_id, revision.size_on_disk, revision.snapshot_path


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())

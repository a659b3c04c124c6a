"""`hrm-edge serve`: an OpenAI-compatible server and a chat page over one bundle."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hrm_edge.errors import HRMEdgeError

from .options import BUNDLE, LOADING, load_model, taken

ORIGIN = re.compile(r"\*|https?://[^/\s]+")


def loading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of Loading."""
    for option in reversed(LOADING):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="0 takes any free one.")
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    envvar="HRM_EDGE_API_KEY",
    show_envvar=True,
    help="Ask clients for this key; several may be given.",
)
@click.option(
    "--cors", "origins", multiple=True, metavar="ORIGIN", help="A page elsewhere that may call."
)
@click.option("--model-name", help="Name in the API; default: the bundle's directory.")
@click.option(
    "--parallel",
    "rows",
    type=int,
    help="Answers computed at once, each with its own context; default: as many as pay here.",
)
@click.option("--queue", default=64, show_default=True, help="Most requests that wait.")
@click.option("--max-body", default=1 << 20, show_default=True, help="Most bytes of a request.")
@click.option("--grace", default=10.0, show_default=True, help="Seconds to finish at SIGTERM.")
@click.option("--access-log", is_flag=True, help="Log each request on stderr.")
@loading_options
def command(
    bundle: Path,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    origins: tuple[str, ...],
    model_name: str | None,
    queue: int,
    max_body: int,
    grace: float,
    access_log: bool,
    **loading: Any,
) -> None:
    """Serve the model in BUNDLE: OpenAI's API under /v1, a chat page at /."""
    _in_range("port", port, 0 <= port <= 65535, "0 to 65535")
    _in_range("queue", queue, queue >= 1, "1 or more")
    _in_range("max-body", max_body, max_body >= 1024, "1024 or more")
    _in_range("grace", grace, 0 <= grace <= 3600, "0 to 3600")
    if any(not key.strip() or not key.isascii() for key in api_keys):
        raise HRMEdgeError("an --api-key is empty or not ASCII; give another one")
    if wrong := next((o for o in origins if not ORIGIN.fullmatch(o)), None):
        raise HRMEdgeError(f"--cors is {wrong!r}, expected http(s)://HOST[:PORT], or *")
    from ..server.app import Server
    from ..server.guard import Access, Limits
    from ..server.run import listen, serve

    limits = Limits(queue=queue, body=max_body, shutdown_seconds=grace)
    with listen(host, port) as socket:
        model = load_model(bundle, taken(loading))
        name = model_name or bundle.resolve().name
        serve(Server(model, name, Access(api_keys, origins, host), limits), socket, access_log)


def _in_range(name: str, value: float, ok: bool, expected: str) -> None:
    if not ok:
        raise HRMEdgeError(f"--{name} is {value}, expected {expected}")

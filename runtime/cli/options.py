"""The options that verbs share: how to load a bundle, and how to answer.

Those of an answer come from the table in settings.py; here are only their flags.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrm_edge import shipped
from hrm_edge.bundle import Bundle
from hrm_edge.config import KV_SHARES, parse_json
from hrm_edge.errors import HRMEdgeError
from hrm_edge.number_list import Numbers
from hrm_edge.progress import status

from ..session.loading import Loading, weight_cache_directory
from ..settings import TABLE

if TYPE_CHECKING:
    from ..engine import Model
    from ..settings import Options

FILE = click.Path(path_type=Path)


class _Bundle(click.ParamType):
    """A bundle's directory, by its path or as the name of a model that ships inside."""

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return shipped.bundle(value)


BUNDLE = _Bundle()
FLAGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # where they are not --the-name
    "max_tokens": (("-n", "--max-tokens"), {}),
    "temperature": (("--temp", "temperature"), {}),
    "speculate": (("--speculation/--no-speculation", "speculate"), {}),
    "logit_bias": (("--logit-bias",), {"multiple": True, "metavar": "ID=NUMBER"}),
    "stop": (("--stop",), {"multiple": True, "metavar": "TEXT"}),
    "json_schema": (("--json-schema",), {"metavar": "FILE|JSON"}),
    "grammar": (("--grammar",), {"metavar": "FILE", "type": FILE}),
}
APART = ("logprobs", "l_cycles")  # an option of `generate` alone, and one of LOADING too


def _answering(name: str) -> Any:
    """The click option of the answer option `name`."""
    row = TABLE[name]
    flags, settings = FLAGS.get(name, ((f"--{name.replace('_', '-')}",), dict[str, Any]()))
    means = f" {row.option.means}." if row.option.means else ""
    settings = {"help": row.option.help.removesuffix(".") + "." + means} | settings
    if row.kind in (int, float, str) and "type" not in settings:
        settings["type"] = row.kind
    if row.default not in (None, (), {}):
        settings |= {"default": row.default, "show_default": row.kind is not bool}
    decorated: Any = click.option
    return decorated(*flags, **settings)


ANSWERING = tuple(_answering(name) for name in TABLE if name not in APART)
THREADS = click.option(
    "-t", "--threads", type=int, help="Default: one per physical performance core."
)
H_CYCLES = click.option("--h-cycles", type=int, help="Run so many H cycles: faster, less able.")
L_CYCLES = click.option(
    "--l-cycles",
    type=Numbers(),
    help="L passes of each H cycle for an answer's tokens: faster, a little less exact.",
)
FAST = click.option(
    "--fast", is_flag=True, help="Take --l-cycles and --kv-share as the bundle recommends them."
)
PROVIDER = click.option(
    "--provider", default="cpu", show_default=True, help="What computes: cpu, cuda, ..."
)
WEIGHT_CACHE = click.option(
    "--weight-cache",
    default="off",
    show_default=True,
    metavar="DIR|auto|off",
    help="Keep packed weights there: far less memory, twice the disk.",
)
KV_SHARE = click.option(
    "--kv-share",
    type=click.Choice(KV_SHARES),
    default="none",
    show_default=True,
    help="Passes that keep keys and values in one place: less memory, a little less exact.",
)
LOADING = (
    THREADS,
    click.option("-c", "--max-context", type=int, help="Tokens of prompt and answer to hold."),
    click.option(
        "--draft", metavar="BUNDLE|shallow", help="What drafts; by default shallow, where it can."
    ),
    H_CYCLES,
    L_CYCLES,
    FAST,
    PROVIDER,
    WEIGHT_CACHE,
    KV_SHARE,
    click.option("--verify", is_flag=True, help="Hash the bundle's files before use."),
    click.option("--strict", is_flag=True, help="Refuse a bundle that may not fit into memory."),
)


def load_model(path: Path, loading: Loading) -> "Model":
    """The model in `path`; a warning on stderr if it may not fit."""
    from hrm_edge.fit import shortage

    from ..engine import load
    from ..session.opening import as_loaded, settled

    bundle = Bundle.open(path, loading.verify)
    loading = settled(bundle, loading)
    checked = not loading.strict and loading.provider == "cpu"
    if checked and (
        short := shortage(as_loaded(bundle, loading), loading.max_context, loading.rows or 1)
    ):
        click.echo(f"Warning: {short}", err=True)
    with status("loading the bundle"):
        return load(bundle, loading)


def taken(values: dict[str, Any]) -> Loading:
    """The Loading of a command's `values`, which are taken out of them."""
    chosen = {name: values.pop(name) for name in Loading.__dataclass_fields__ if name in values}
    cache = weight_cache_directory(chosen.pop("weight_cache"))
    return Loading(**chosen, weight_cache=cache)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` all options above, gathered as `loading` and `options`."""

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        loading = taken(values)
        options = _options({name: values.pop(name) for name in TABLE if name not in APART})
        command(loading=loading, options=options, **values)

    for option in reversed(ANSWERING + LOADING):
        gathered = option(gathered)
    return gathered


def _options(values: dict[str, Any]) -> "Options":
    found: Any = values | {"logit_bias": dict(_bias(text) for text in values["logit_bias"])}
    if values["json_schema"] is not None:
        found["json_schema"] = read_schema(values["json_schema"])
    if values["grammar"] is not None:
        found["grammar"] = _read(values["grammar"])
    return found


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise HRMEdgeError(f"logit-bias is {text!r}, expected ID=NUMBER, such as 42=-1.5") from None


def read_schema(text: str) -> Any:
    """A JSON schema from a file, or from JSON itself. Raises HRMEdgeError."""
    source = text if text.lstrip().startswith("{") else _read(Path(text))
    return parse_json(source, f"json-schema {text[:60]!r}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None

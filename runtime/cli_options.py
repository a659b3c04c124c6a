"""The options that verbs share: how to load a bundle, and how to answer."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import status

if TYPE_CHECKING:
    from .engine import Model
    from .settings import Options

ANSWERING = (
    click.option(
        "--condition", default="direct", show_default=True, help="direct, cot, noisy, synth."
    ),
    click.option("-n", "--max-tokens", default=256, show_default=True),
    click.option("--temp", "temperature", default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", default=0, show_default=True, help="0 is off."),
    click.option("--top-p", default=1.0, show_default=True, help="1 is off."),
    click.option("--min-p", default=0.0, show_default=True, help="0 is off."),
    click.option("--seed", type=int, help="The same seed gives the same sample."),
    click.option("--repetition-penalty", default=1.0, show_default=True, help="1 is off."),
    click.option("--presence-penalty", default=0.0, show_default=True, help="0 is off."),
    click.option("--frequency-penalty", default=0.0, show_default=True, help="0 is off."),
    click.option("--logit-bias", multiple=True, metavar="ID=NUMBER", help="May be repeated."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before it; may be repeated."),
    click.option("--json-schema", metavar="FILE|JSON", help="Answer with JSON of this schema."),
    click.option("--regex", help="Answer with text that matches."),
    click.option("--grammar", metavar="FILE", type=click.Path(path_type=Path), help="In Lark."),
    click.option(
        "--speculation/--no-speculation",
        "speculate",
        default=True,
        help="Draft tokens where it pays.  [default: on]",
    ),
)
THREADS = click.option(
    "-t", "--threads", type=int, help="Default: one per physical performance core."
)
H_CYCLES = click.option("--h-cycles", type=int, help="Run so many H cycles: faster, less able.")
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
LOADING = (
    THREADS,
    click.option("-c", "--max-context", type=int, help="Tokens of prompt and answer to hold."),
    click.option("--draft", metavar="BUNDLE|self", help="What drafts; self is its first H cycle."),
    H_CYCLES,
    PROVIDER,
    WEIGHT_CACHE,
    click.option("--verify", is_flag=True, help="Hash the bundle's files before use."),
    click.option("--strict", is_flag=True, help="Refuse a bundle that may not fit into memory."),
)


@dataclass(frozen=True)
class Loading:
    """How to load a bundle."""

    threads: int | None
    max_context: int | None
    draft: str | None
    h_cycles: int | None
    provider: str
    weight_cache: str
    verify: bool
    strict: bool

    def load(self, path: Path) -> "Model":
        """The model in `path`; a warning on stderr if it may not fit."""
        from .engine import load
        from .fit import shortage
        from .weight_cache import directory_of

        checked = not self.strict and self.provider == "cpu"
        if checked and (short := shortage(path, self.max_context)):
            click.echo(f"Warning: {short}", err=True)
        with status("loading the bundle"):
            return load(
                path,
                threads=self.threads,
                max_context=self.max_context,
                verify=self.verify,
                draft=self.draft,
                strict=self.strict,
                h_cycles=self.h_cycles,
                provider=self.provider,
                weight_cache=directory_of(self.weight_cache),
            )


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` all options above, gathered as `loading` and `options`."""

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        loading = Loading(**{name: values.pop(name) for name in Loading.__dataclass_fields__})
        options = _options({name: values.pop(name) for name in _names()})
        command(loading=loading, options=options, **values)

    for option in reversed(ANSWERING + LOADING):
        gathered = option(gathered)
    return gathered


def _names() -> list[str]:
    return [*_FLAGS, "logit_bias", "stop", "json_schema", "grammar"]


_FLAGS = (
    *("condition", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "regex", "speculate"),
)


def _options(values: dict[str, Any]) -> "Options":
    found: Any = {name: values[name] for name in _FLAGS}
    found["stop"] = values["stop"]
    found["logit_bias"] = dict(_bias(text) for text in values["logit_bias"])
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
    try:
        return json.loads(source)
    except ValueError as error:
        raise HRMEdgeError(f"json-schema: {text[:60]!r} is not JSON ({error})") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None

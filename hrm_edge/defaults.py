"""Defaults of the command line's options from a file of the user's, config.toml.

    threads = 4                # for every verb that has the option
    weight-cache = "auto"

    [serve]                    # for one verb
    port = 9000

Keys are the long names of options. A flag on the command line goes before the file.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from hrm_edge.errors import HRMEdgeError

CONFIG_VARIABLE = "HRM_EDGE_CONFIG"
SHARED = ("threads", "max-context", "weight-cache", "provider", "kv-share", "fast", "strict")


def config_path() -> Path:
    """The file, whether it is there or not; HRM_EDGE_CONFIG moves it."""
    given = os.environ.get(CONFIG_VARIABLE)
    return Path(given) if given else Path(click.get_app_dir("hrm-edge")) / "config.toml"


def defaults(verb: str, command: click.Command, verbs: Iterable[str]) -> dict[str, Any]:
    """Parameter name to default of `command`, which goes by `verb`.

    Raises HRMEdgeError that names the file and the key for what is no option or of a wrong kind.
    """
    path = config_path()
    kept = _read(path)
    own = kept.get(verb, {})
    for key in kept:
        if key not in SHARED and key not in verbs:
            raise HRMEdgeError(f"{path}: unknown key {key!r}{_near(key, [*SHARED, *verbs])}")
    if not isinstance(own, dict):
        raise HRMEdgeError(f"{path}: {verb} is {own!r}, expected a section [{verb}]")
    options = dict(_options(command))
    for key in own:
        if key not in options:
            raise HRMEdgeError(f"{path}: {verb} has no option {key!r}{_near(key, options)}")
    chosen = {key: kept[key] for key in SHARED if key in kept and key in options} | own
    return {options[key].name or "": _value(options[key], chosen[key], path) for key in chosen}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if CONFIG_VARIABLE in os.environ:
            raise HRMEdgeError(f"{path}: no such file, named by {CONFIG_VARIABLE}") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read as TOML ({error})") from None


def _options(command: click.Command) -> Iterable[tuple[str, click.Option]]:
    """Long name and option; those that take a value or switch something on."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for flag in parameter.opts:
                if flag.startswith("--"):
                    yield flag.removeprefix("--"), parameter


def _value(option: click.Option, value: Any, path: Path) -> Any:
    """`value` as the option's type takes it. Raises HRMEdgeError."""
    name = option.opts[-1]
    if option.is_flag and not isinstance(value, bool):
        raise HRMEdgeError(f"{path}: {name} is {value!r}, expected true or false")
    if isinstance(value, Mapping) or (isinstance(value, list) and not option.multiple):
        raise HRMEdgeError(f"{path}: {name} is {value!r}, expected one value")
    try:
        return option.type_cast_value(click.Context(click.Command("")), value)
    except (click.UsageError, TypeError, ValueError) as error:
        says = error.message if isinstance(error, click.UsageError) else str(error)
        raise HRMEdgeError(f"{path}: {name} is {value!r}: {says}") from None


def _near(key: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else f", expected one of {', '.join(known)}"

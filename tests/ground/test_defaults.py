"""config.toml: what it sets, what goes before it, and what is wrong in it."""

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from hrm_edge.__main__ import VERBS, cli
from hrm_edge.defaults import SHARED, config_path, defaults

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("HRM_EDGE_CONFIG", str(path))
    return path


def verb(name: str) -> click.Command:
    assert isinstance(cli, click.Group)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def found(name: str) -> dict[str, object]:
    return defaults(name, verb(name), VERBS)


def test_shared_keys_reach_every_verb_that_has_them_and_a_section_its_own(config: Path) -> None:
    config.write_text('threads = 3\nweight-cache = "auto"\n[serve]\nport = 9\nthreads = 2\n')
    assert found("serve") == {"threads": 2, "weight_cache": "auto", "port": 9}
    assert found("bench") == {"threads": 3, "weight_cache": "auto"}
    assert found("list") == {}


def test_every_shared_key_is_an_option_of_some_verb() -> None:
    options = {o for name in VERBS for parameter in verb(name).params for o in parameter.opts}
    assert {f"--{key}" for key in SHARED} <= options


def test_a_default_is_taken_and_a_flag_goes_before_it(
    config: Path, shared_bundle: Path, run_cli: Run
) -> None:
    config.write_text("[generate]\nmax-tokens = 3\njson = true\n")
    code, out, _ = run_cli("generate", shared_bundle, "Hi")
    assert code == 0 and '"completion_tokens": 3' in out
    code, out, _ = run_cli("generate", shared_bundle, "Hi", "-n", "2")
    assert code == 0 and '"completion_tokens": 2' in out


def test_the_value_is_checked_as_the_flag_is(
    config: Path, shared_bundle: Path, run_cli: Run
) -> None:
    config.write_text("threads = 999\n")
    code, _, err = run_cli("generate", shared_bundle, "Hi")
    assert code == 1 and "threads is 999, expected 1 to" in err


def test_help_names_the_file(run_cli: Run) -> None:
    code, out, _ = run_cli("--help")
    assert code == 0 and "Defaults for options:" in out and "config.toml" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thread = 3", "unknown key 'thread'; did you mean 'threads'?"),
        ("[generat]\nn = 3", "unknown key 'generat'; did you mean 'generate'?"),
        ("generate = 3", "generate is 3, expected a section [generate]"),
        ("[generate]\nmax-token = 3", "generate has no option 'max-token'; did you mean"),
        ("[generate]\nmax-tokens = 'many'", "--max-tokens is 'many'"),
        ("[generate]\njson = 'yes'", "--json is 'yes', expected true or false"),
        ("[generate]\nmax-tokens = [3]", "--max-tokens is [3], expected one value"),
        ("[generate", "cannot be read as TOML"),
        (b"\xff\xfe", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    config: Path, run_cli: Run, text: str | bytes, says: str
) -> None:
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = run_cli("generate", "no-bundle", "Hi")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert err.startswith(f"Error: {config}: ") and says in err


def test_a_file_that_was_named_must_be_there(config: Path, run_cli: Run) -> None:
    code, _, err = run_cli("list")
    assert code == 1 and f"{config}: no such file, named by HRM_EDGE_CONFIG" in err


def test_without_the_variable_it_lies_where_programs_keep_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HRM_EDGE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_path().name == "config.toml" and "hrm-edge" in str(config_path())
    assert found("serve") == {}

"""Fixtures: tiny checkpoints, a bundle, and the command line run in this process."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_models import Shape, write_model

# A shell starts background jobs with Ctrl-C ignored, and programs pass that on to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The smallest checkpoint, in the hub's form."""
    return write_model(tmp_path / "checkpoint", Shape())


@pytest.fixture(scope="session")
def shared_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small checkpoint for tests that do not change it."""
    return write_model(tmp_path_factory.mktemp("shared") / "checkpoint", Shape(layers=2, seed=3))


@pytest.fixture(scope="session")
def shared_bundle(shared_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 bundle of `shared_checkpoint`, for tests that do not change it."""
    from hrm_edge.export import export

    return export(shared_checkpoint, tmp_path_factory.mktemp("bundles") / "int4").path


@pytest.fixture
def run_cli() -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from click.testing import CliRunner

    from hrm_edge.__main__ import cli

    def run(*arguments: object, input: str | None = None) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, [str(a) for a in arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture(autouse=True, scope="session")
def no_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own defaults and history stay out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(autouse=True, scope="session")
def short_plans() -> None:
    """Random models never end an answer; measuring their plans is for test_plans.py."""
    from hrm_edge.export.evaluate import plans

    plans.TOKENS = 1
    plans.LONGEST = 24


@pytest.fixture(autouse=True, scope="session")
def drafts_if_asked() -> None:
    """Models draft with fewer passes only where a test says draft="shallow".

    How much is drafted depends on measured times. A call of several tokens rounds otherwise, and
    where random weights leave two tokens all but equal, two runs would differ. test_plan.py has the
    default.
    """
    from hrm_edge.runtime import engine

    honest = engine._shallow

    def asked_for(session: Any, path: Path, asked: bool) -> Any:
        return honest(session, path, asked) if asked else None

    asked_for.__dict__["honest"] = honest
    engine._shallow = asked_for

"""`hrm-edge`: a table of verbs, each loaded when it is used."""

import difflib
import importlib
import signal
from types import FrameType
from typing import Any

import click

from hrm_edge.defaults import config_path, defaults
from hrm_edge.errors import HRMEdgeError

VERBS = {
    "demo": "hrm_edge.cli_demo",
    "list": "hrm_edge.cli_list",
    "rm": "hrm_edge.cli_rm",
    "export": "hrm_edge.export.cli_export",
    "eval": "hrm_edge.cli_eval",
    "inspect": "hrm_edge.cli_inspect",
    "generate": "hrm_edge.runtime.cli.generate",
    "chat": "hrm_edge.runtime.cli.chat",
    "serve": "hrm_edge.runtime.cli.serve",
    "bench": "hrm_edge.runtime.cli.bench",
    "train": "hrm_edge.training.cli_train",
    "score": "hrm_edge.training.cli_score",
    "import": "hrm_edge.training.cli_import",
    "completion": "hrm_edge.cli_completion",
}
INTERRUPTED = 130  # what shells expect of a program that Ctrl-C has ended
EXTRAS = {
    "export": ("gguf", "huggingface_hub", "ml_dtypes", "onnx_ir", "safetensors"),
    "executorch": ("executorch", "torchao"),
    "train": ("matplotlib", "tensorboard", "torch", "yaml"),
    "chat": ("jinja2",),
    "serve": ("msgspec", "segno", "starlette", "uvicorn"),
    "guided": ("llguidance",),
    "eval": ("datasets", "httpx", "math_verify"),
}


class _Verbs(click.Group):
    """Loads a verb's module on demand and turns a user's mistake into one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(VERBS[cmd_name]).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], VERBS, 1)
        if args[0] not in VERBS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and not ctx.resilient_parsing:
            ctx.default_map = {name: defaults(name, command, VERBS)}
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except (HRMEdgeError, ModuleNotFoundError, MemoryError) as error:
            line = _one_line(error)
            if line is None or ctx.params["debug"]:
                raise
            raise click.ClickException(line) from error


def _one_line(error: Exception) -> str | None:
    """What to tell the user; None if the error is a bug of ours."""
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller max_context, or fewer bits at export"
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        extra = next((name for name, modules in EXTRAS.items() if module in modules), None)
        return extra and f"this needs {module}: pip install 'hrm-edge[{extra}]'"
    return str(error)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Defaults for options: {config_path()} (docs/runtime.md).",
)
@click.version_option(package_name="hrm-edge")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Train, convert and run HRM-Text models on small devices.

    eval, inspect, generate, chat, serve and bench know the models that ship inside by their names,
    hrm-tiny (which export takes too) and hrm-g2p. For completion with Tab see hrm-edge completion
    --help.
    """


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The console script. SIGTERM is handled as Ctrl-C, so that nothing half-written stays."""
    signal.signal(signal.SIGTERM, _interrupt)
    cli(prog_name="hrm-edge")


if __name__ == "__main__":
    main()

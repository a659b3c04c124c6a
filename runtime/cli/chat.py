"""`hrm-edge chat`: a conversation in the terminal.

Every turn reads the whole conversation anew, because HRM-Text reads a prompt in both directions.
"""

import atexit
import contextlib
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import status

from ..session.loading import Loading
from .generate import describe
from .options import BUNDLE, load_model, model_options

if TYPE_CHECKING:
    from ..engine import Model, Stats
    from ..settings import Options
    from .conversation import Conversation

HISTORY = Path(click.get_app_dir("hrm-edge")) / "chat_history"
LINES = 1000  # kept of it


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--system", help="A message that stands in front of the conversation.")
@click.option("--stats", is_flag=True, help="Print the speed of each answer on stderr.")
@click.option(
    "--history/--no-history", default=True, help="Keep what is typed for the next session's ↑."
)
@model_options
def command(
    bundle: Path,
    system: str | None,
    stats: bool,
    history: bool,
    loading: Loading,
    options: "Options",
) -> None:
    """Talk with the model in BUNDLE. /help lists commands, Ctrl-C stops an answer, Ctrl-D ends."""
    from ..settings import Settings
    from .conversation import Conversation

    Settings.of(options)
    model = load_model(bundle, loading)
    conversation = Conversation(options)
    if system:
        conversation.command(f"/system {system}")
    _edit_lines(HISTORY if history and sys.stdin.isatty() else None)
    _warn(model)
    while not conversation.ended:
        try:
            line = _read()
        except EOFError:
            return
        try:
            _take(model, conversation, line, stats)
        except HRMEdgeError as error:
            click.echo(f"Error: {error}", err=True)


def _take(model: "Model", conversation: "Conversation", line: str, stats: bool) -> None:
    """A turn, a command, or nothing."""
    from .conversation import RETRY, named

    if line.startswith("/") and named(line) != RETRY:
        if said := conversation.command(line):
            click.echo(said, err=True)
        return
    if line.startswith("/"):
        line = conversation.retry()
    if line.strip():
        asked = conversation.ask(line)
        answer, figures = _answer(model, asked, conversation.options)
        conversation.answered(asked, answer)
        if stats and figures is not None:
            click.echo(describe(figures), err=True)


def _answer(model: "Model", asked: list, options: "Options") -> tuple[str, "Stats | None"]:
    """Print an answer as it grows; up to Ctrl-C, if that comes first."""
    from .interrupt import interruptible

    answer, figures, reason = "", None, None
    pieces = interruptible(model.stream_chat(asked, **options), model.cancel)
    try:
        with contextlib.closing(pieces):
            with status("reading the conversation"):
                first = next(pieces)
            for piece in itertools.chain([first], pieces):
                click.echo(piece.text, nl=False)
                answer, figures, reason = answer + piece.text, piece.stats, piece.finish_reason
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False, err=True)
    click.echo()
    if figures is not None and reason == "length":
        click.echo("(The answer was cut; /set max_tokens allows more.)", err=True)
    if figures is not None and reason == "repetition":
        click.echo("(It repeats itself and was ended; /set max_repeats 0 lets it go on.)", err=True)
    return answer, figures


def _read() -> str:
    """A line, or several joined by a backslash at the end. Ctrl-C drops what was typed."""
    prompt = "> " if sys.stdin.isatty() else ""
    lines: list[str] = []
    while True:
        try:
            line = input("  " if lines and prompt else prompt)
        except KeyboardInterrupt:
            click.echo("  (Ctrl-D or /exit leaves)", err=True)
            lines = []
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _edit_lines(history: Path | None) -> None:
    """Arrow keys, history and Emacs keys for `input`, where Python was built with readline.

    Lines come from the file `history`, and go there at the end for its owner alone to read.
    """
    with contextlib.suppress(ImportError):
        import readline

        if history is not None:
            with contextlib.suppress(OSError):
                readline.read_history_file(history)
            atexit.register(_keep_lines, history, readline)
        readline.parse_and_bind("tab: complete")
        readline.set_completer(_complete)
        readline.set_completer_delims("")


def _keep_lines(history: Path, readline: Any) -> None:
    readline.set_history_length(LINES)
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        readline.write_history_file(history)
    except OSError as error:
        click.echo(f"Warning: {history}: what was typed is not kept ({error.strerror})", err=True)


def _complete(text: str, state: int) -> str | None:
    from .conversation import COMMANDS

    found = [f"/{name} " for name in COMMANDS if text and f"/{name}".startswith(text)]
    return found[state] if state < len(found) else None


def _warn(model: "Model") -> None:
    if model.chat_template is None and sys.stdin.isatty():
        click.echo(
            "This model has no chat template: it was trained on single questions, so expect "
            "little of later turns. /clear begins anew.",
            err=True,
        )

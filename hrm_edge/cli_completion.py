"""`hrm-edge completion`: the lines that teach a shell to complete our commands with Tab."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete hrm-edge.

    bash: hrm-edge completion bash >> ~/.bashrc; zsh: hrm-edge completion zsh >> ~/.zshrc; fish:
    hrm-edge completion fish > ~/.config/fish/completions/hrm-edge.fish
    """
    kind, program = get_completion_class(shell), context.find_root().command
    assert kind is not None
    click.echo(kind(program, {}, "hrm-edge", "_HRM_EDGE_COMPLETE").source())

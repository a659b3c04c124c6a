"""`hrm-edge generate`: an answer on stdout as it grows, figures on stderr."""

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import status

if TYPE_CHECKING:
    from .engine import Stats


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option("--condition", default="direct", show_default=True, help="direct, cot, noisy, synth.")
@click.option("-n", "--max-tokens", default=256, show_default=True)
@click.option("--temp", default=0.0, show_default=True, help="Temperature; 0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="0 is off.")
@click.option("--top-p", default=1.0, show_default=True, help="1 is off.")
@click.option("--min-p", default=0.0, show_default=True, help="0 is off.")
@click.option("--seed", type=int, help="The same seed gives the same sample.")
@click.option("-t", "--threads", type=int, help="Default: one per physical core.")
@click.option("-c", "--max-context", type=int, help="Tokens of prompt and answer to make room for.")
@click.option("--verify", is_flag=True, help="Hash the bundle's files before use.")
@click.option("--stats", is_flag=True, help="Print times and memory on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    bundle: Path,
    prompt: str | None,
    file: Path | None,
    condition: str,
    max_tokens: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    threads: int | None,
    max_context: int | None,
    verify: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT (- reads it from stdin) with the model in BUNDLE."""
    from .engine import load

    text = _prompt(prompt, file)
    with status("loading the bundle"):
        model = load(bundle, threads=threads, max_context=max_context, verify=verify)
    pieces = model.stream(
        text,
        condition=condition,
        max_tokens=max_tokens,
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    with status("reading the prompt"):
        last = next(pieces)
    answer = ""
    for last in itertools.chain([last], pieces):
        answer += last.text
        if not as_json:
            click.echo(last.text, nl=False)
    assert last.stats is not None
    if as_json:
        shown = {"text": answer, "finish_reason": last.finish_reason, "stats": asdict(last.stats)}
        click.echo(json.dumps(shown, ensure_ascii=False))
    else:
        click.echo()
    if stats:
        click.echo(describe(last.stats), err=True)


def describe(stats: "Stats") -> str:
    """One line of figures."""
    parts = [
        f"{stats.prompt_tokens} + {stats.completion_tokens} tokens",
        f"ttft {stats.ttft:.2f} s",
        f"prefill {stats.prefill_tps:.1f} tok/s",
        f"decode {stats.decode_tps:.1f} tok/s",
    ]
    for label, size in (("peak", stats.peak_memory), ("anonymous", stats.anonymous_memory)):
        if size is not None:
            parts.append(f"{label} memory {size / 2**20:.0f} MiB")
    return ", ".join(parts)


def _prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise click.UsageError("give one of PROMPT, - (stdin) or --file")
    if prompt is not None and prompt != "-":
        return prompt
    try:
        return file.read_text(encoding="utf-8") if file else sys.stdin.buffer.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{file or 'stdin'}: the prompt cannot be read ({error})") from None

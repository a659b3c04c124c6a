"""`hrm-edge generate`: an answer on stdout as it grows, figures on stderr."""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrm_edge import memory
from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import counting, status

from ..session.loading import Loading
from .options import BUNDLE, load_model, model_options

if TYPE_CHECKING:
    from ..engine import Completion, Model, Piece, Stats
    from ..settings import Options


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("prompt", required=False)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    help='Answer every line of a JSONL file, {"prompt": ...} or {"messages": ...}, with JSONL.',
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Append the batch's answers to this file as they come; a stopped run goes on there.",
)
@click.option(
    "--parallel", "rows", default=1, show_default=True, help="Prompts of a batch answered at once."
)
@click.option("--samples", default=1, show_default=True, help="So many answers, the best first.")
@click.option("--logprobs", type=int, help="With --json: the likeliest tokens at each place.")
@click.option(
    "--prompt-cache",
    type=click.Path(path_type=Path),
    help="Keep the prompt's KV cache in this file; the same prompt then needs no prefill.",
)
@click.option("--stats", is_flag=True, help="Print times and memory on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@model_options
def command(
    bundle: Path,
    prompt: str | None,
    file: Path | None,
    batch: Path | None,
    out: Path | None,
    samples: int,
    logprobs: int | None,
    prompt_cache: Path | None,
    stats: bool,
    as_json: bool,
    loading: Loading,
    options: "Options",
) -> None:
    """Answer PROMPT (or what comes through a pipe, or -) with the model in BUNDLE."""
    text = _prompt(prompt, file, batch)
    if batch is None and (out is not None or loading.rows != 1):
        raise HRMEdgeError("--out and --parallel are for --batch; give all or none of them")
    if logprobs is not None:
        if not as_json:
            raise HRMEdgeError("--logprobs shows with --json alone; give both")
        options["logprobs"] = logprobs
    if prompt_cache is not None and not prompt_cache.parent.is_dir():
        raise HRMEdgeError(f"{prompt_cache}: no directory {prompt_cache.parent} to keep it in")
    if batch is not None:
        _answer_all(bundle, loading, batch, out, options)
        return
    model = _load(bundle, loading, options, prompt_cache)
    done = _answer(model, text, options, samples, as_json)
    if prompt_cache is not None:
        model.save_prefix(prompt_cache)
    if stats:
        click.echo(describe(done.stats), err=True)
    if done.finish_reason != "stop" and not as_json:
        _tell_cut(model, done, options)


def _tell_cut(model: "Model", done: "Completion", options: "Options") -> None:
    """Say that the answer was not at its end, an error where that makes it worthless."""
    count, limit = done.stats.completion_tokens, model.session.max_context
    more = f"--max-tokens {2 * count}"
    if done.stats.prompt_tokens + count >= limit:
        more = f"a shorter prompt or --max-context beyond {limit}"
    told = f"cut after {count} tokens; {more} leaves room for more"
    if done.finish_reason == "repetition":
        told = f"ended after {count} tokens, as it repeats itself; --max-repeats 0 lets it go on"
    if any(options.get(name) is not None for name in ("json_schema", "regex", "grammar")):
        raise HRMEdgeError(f"the answer is not what was asked for: it was {told}")
    click.echo(f"(The answer was {told}.)", err=True)


def _load(bundle: Path, loading: Loading, options: "Options", cache: Path | None) -> "Model":
    from ..settings import Settings

    Settings.of(options)  # a mistake in the options is said before minutes of loading
    model = load_model(bundle, loading)
    if cache is not None and cache.exists():
        model.restore_prefix(cache)
    return model


def _answer(
    model: "Model", text: str, options: "Options", samples: int, as_json: bool
) -> "Completion":
    """Print an answer as it grows, or several, the likeliest first; return the first printed."""
    from ..engine import Completion, likelihood

    if samples != 1:
        several = sorted(model.samples(text, samples, **options), key=likelihood, reverse=True)
        for done in several:
            click.echo(json.dumps(_shown(done), ensure_ascii=False) if as_json else done.text)
        return several[0]
    pieces = _printed(model, text, options, as_json)
    done = Completion.of(pieces)
    click.echo(json.dumps(_shown(done, pieces), ensure_ascii=False) if as_json else "")
    return done


def _printed(model: "Model", text: str, options: "Options", quiet: bool) -> "list[Piece]":
    from .interrupt import interruptible

    pieces = interruptible(model.stream(text, **options), model.cancel)
    with status("reading the prompt"):
        found = [next(pieces)]
    if not quiet:
        click.echo(found[0].text, nl=False)
    for piece in pieces:
        found.append(piece)
        if not quiet:
            click.echo(piece.text, nl=False)
    return found


def _shown(done: "Completion", pieces: "list[Piece] | None" = None) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": done.text, "finish_reason": done.finish_reason}
    if pieces is None:
        shown["logprob"] = sum(done.logprobs)
    elif done.logprobs:
        names = ("token", "text", "logprob", "top_logprobs")
        rows = [(p.token, p.text, p.logprob, p.top_logprobs) for p in pieces]
        shown["logprobs"] = [dict(zip(names, row, strict=True)) for row in rows]
    return shown | {"stats": asdict(done.stats)}


def _answer_all(
    bundle: Path, loading: Loading, path: Path, out: Path | None, options: "Options"
) -> None:
    """A line of JSON for each of the file: in `out` as it comes, else on stdout in their order."""
    from . import batch
    from .interrupt import interruptible

    rows = batch.read(path)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(batch.journal(out, rows)) if out else None
        done = dict(kept.done) if kept else {}
        left = [row for row in rows if row["id"] not in done]
        model = _load(bundle, loading, options, None)
        told = stack.enter_context(counting(len(rows), "answer", len(done)))
        shown = 0
        for row in interruptible(batch.answers(model, left, options), model.cancel):
            done[row["id"]] = row
            told(row.get("usage", {}).get("completion", 0))
            if kept:
                kept.add(row)
                continue
            while shown < len(rows) and rows[shown]["id"] in done:
                click.echo(json.dumps(done[rows[shown]["id"]], ensure_ascii=False))
                shown += 1
    failed = sum("error" in row for row in done.values())
    if failed:
        raise HRMEdgeError(f'{path}: {failed} of {len(rows)} prompts failed; see their "error"')


def describe(stats: "Stats") -> str:
    """One line of figures."""
    parts = [
        f"{stats.prompt_tokens} + {stats.completion_tokens} tokens",
        f"ttft {stats.ttft:.2f} s",
        "prefill cached" if stats.cached_tokens else f"prefill {stats.prefill_tps:.1f} tok/s",
        f"decode {stats.decode_tps:.1f} tok/s",
    ]
    if stats.drafted:
        parts.append(f"{stats.accepted} of {stats.drafted} drafted tokens right")
    for label, size in (("peak", stats.peak_memory), ("anonymous", stats.anonymous_memory)):
        if size is not None:
            parts.append(f"{label} memory {size / 2**20:.0f} MiB")
    if huge := memory.huge():
        parts.append(f"{huge / 2**20:.0f} MiB of it in huge pages")
    return ", ".join(parts)


def _prompt(prompt: str | None, file: Path | None, batch: Path | None) -> str:
    given = sum(source is not None for source in (prompt, file, batch))
    if given == 0 and not sys.stdin.isatty():
        prompt = "-"
    elif given != 1:
        raise click.UsageError("give one of PROMPT, - (stdin), --file or --batch")
    if batch is not None or (prompt is not None and prompt != "-"):
        return prompt or ""
    try:
        return file.read_text(encoding="utf-8") if file else sys.stdin.buffer.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{file or 'stdin'}: the prompt cannot be read ({error})") from None

"""Speculation against plain decoding and llama.cpp's: acceptance, tokens a call, tokens a second.

    python -m benchmarks.speculation --work runs/speculation -o benchmarks/results/speculation

answers with hrm-tiny and with hrm-tiny in the shape of HRM-Text-1B (see benchmarks.inflate): that
model says the same, at full cost. `--prepare` only makes the files. Every round takes every text
and decodes it in every way, one after the other. Texts are of two kinds:

- hrm-tiny's own answers to held-out questions: those that copy words of the question, and words
  spelled backward, in which nothing repeats.
- Played: a prompt and a fixed text. Calls, drafts and their verification are real; only what is
  drawn is read off the text, as if the model had chosen it. A model of a million parameters cannot
  edit code, and how fast a copy goes does not depend on who wants it.

The default is prompt lookup and `shallow`, the model's own last L pass of each cycle; both drafters
are measured alone too. `shallow` and `draft model` draft only where the model chose the answer
itself. At XL shape the draft model is hrm-tiny, which is nearly always right there: an upper bound,
not a typical draft model. llama.cpp
decodes tokens of the same texts one by one, as it does without a draft.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.inflate import inflate
from benchmarks.llamacpp import Llama, library_folder
from benchmarks.make_checkpoint import SIZES
from benchmarks.make_checkpoint import config as sized
from benchmarks.peers import machine
from hrm_edge.bundle import Bundle
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.prompt import Tokenizer, format_prompt
from hrm_edge.runtime.decoding.sampling import Choice, Chooser, make_chooser, make_sampler
from hrm_edge.runtime.decoding.speculation import (
    DraftModel,
    Experience,
    Pace,
    Shallow,
    Tally,
    Verifier,
    lookups,
)
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.runtime.session.opening import open_session
from hrm_edge.runtime.session.protocol import Session

SHIPPED = Path(__file__).parent.parent / "hrm_edge" / "data" / "hrm_tiny"
CONTEXT = 512
COPYING, FRESH = ("word_sorting", "word_sequence_reversal"), ("spell_backward",)
CODE = """def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)
"""
EDITED = CODE.replace("total", "summed")
PROSE = (
    "Rain fell on the harbour before dawn, and two boats left anyway. Old maps call this place a "
    "port; nobody younger than sixty does. What keeps it alive is a ferry, some goats, one school."
)
PLAIN, DEFAULT, LLAMACPP = "plain", "lookup and shallow (default)", "llama.cpp, greedy"


@dataclass(frozen=True)
class Files:
    """A model in the forms that are compared, and the bundle that drafts for it, if one does."""

    name: str
    bundle: Path
    gguf: Path
    draft: Path | None = None


@dataclass(frozen=True)
class Text:
    """A prompt in tokens; the answer is the model's own if it is not given."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


@dataclass(frozen=True)
class Workload:
    """Texts of one kind. `limit` tokens are decoded of each at most."""

    name: str
    texts: tuple[Text, ...]
    limit: int

    @property
    def played(self) -> bool:
        """Whether answers are given, not chosen by the model."""
        return bool(self.texts[0].answer)


@dataclass
class Counts:
    """One way through one workload, in one round. llama.cpp drafts nothing."""

    tokens: int = 0  # without each text's first, which the prefix yields
    seconds: float = 0.0
    calls: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def add(self, other: "Counts") -> None:
        """Another text of the same round."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def models(
    work: Path, shape: HRMTextConfig | None, name: str, checkpoint: Path = SHIPPED
) -> list[Files]:
    """hrm-tiny, and hrm-tiny inflated to `shape`; what `work` does not hold yet is made.

    `checkpoint` takes hrm-tiny's place: one that answers the same questions.
    """
    work.mkdir(parents=True, exist_ok=True)
    small = _converted(work, "hrm-tiny", lambda: checkpoint)
    if shape is None:
        return [small]
    wide = work / f"{name}-checkpoint"

    def inflated() -> Path:
        return wide if wide.exists() else inflate(Checkpoint.open(checkpoint), wide, shape)

    large = _converted(work, f"hrm-tiny, {name}-shaped", inflated)
    return [small, Files(large.name, large.bundle, large.gguf, small.bundle)]


def _converted(work: Path, name: str, checkpoint: Callable[[], Path]) -> Files:
    stem = name.replace(", ", "-")
    bundle, gguf = work / f"{stem}-int4", work / f"{stem}-q4_0"
    if not bundle.exists():
        export(checkpoint(), bundle)
    if not gguf.exists():
        export(checkpoint(), gguf, target="gguf")
    return Files(name, bundle, gguf / "model.gguf")


def workloads(tokenizer: Tokenizer, tokens: int) -> list[Workload]:
    """About `tokens` tokens of each kind of text."""
    rows = [json.loads(x) for x in (SHIPPED / "questions.jsonl").read_text("utf-8").splitlines()]

    def own(tasks: Sequence[str]) -> tuple[Text, ...]:
        chosen, length = [], 0
        each = zip(*([r for r in rows if r["task"] == task] for task in tasks), strict=True)
        for row in (row for group in each for row in group):
            if length >= tokens:
                break
            length += len(tokenizer.encode(row["response"])) + 1
            chosen.append(Text(tuple(tokenizer.encode(format_prompt(row["instruction"])))))
        return tuple(chosen)

    def played(prompt: str, answer: str) -> tuple[Text, ...]:
        ids = tokenizer.encode(format_prompt(prompt))
        return (Text(tuple(ids), tuple(tokenizer.encode(answer))),)

    return [
        Workload("copies, own answers", own(COPYING), CONTEXT),
        Workload("no repeats, own answers", own(FRESH), CONTEXT),
        Workload("code edit, played", played("Call it summed:\n" + CODE, EDITED), tokens + 1),
        Workload("prose, played", played("Tell me of a port.", PROSE), tokens + 1),
    ]


Way = Callable[[Sequence[int], Experience], list[Pace]]


@dataclass
class Ours:
    """A loaded bundle, with what each way of decoding each workload has learned so far."""

    session: OnnxSession
    ends: tuple[int, ...]
    draft: Session | None
    learned: dict[tuple[str, str], Experience] = field(default_factory=dict)

    @classmethod
    def open(cls, files: Files, threads: int) -> "Ours":
        """Load the bundle and its drafting one."""
        bundle = Bundle.open(files.bundle)
        how = Loading(threads=threads, max_context=CONTEXT)
        session = open_session(bundle, how)
        assert isinstance(session, OnnxSession)
        draft = (
            open_session(Bundle.open(files.draft), Loading(threads=threads, max_context=CONTEXT))
            if files.draft
            else None
        )
        return cls(session, bundle.manifest.eos_token_ids, draft)

    def ways(self, workload: Workload) -> dict[str, Way]:
        """How to decode, by name: the drafters of each."""
        found: dict[str, Way] = {PLAIN: lambda ids, learned: [], "prompt lookup": lookups}
        if not workload.played:
            found["shallow"] = lambda ids, learned: [self._shallow(learned)]
            found[DEFAULT] = lambda ids, learned: [*lookups(ids, learned), self._shallow(learned)]
            if (draft := self.draft) is not None:
                found["draft model"] = lambda ids, learned: [Pace(DraftModel(draft, ids), learned)]
        return found

    def _shallow(self, learned: Experience) -> Pace:
        return Pace(Shallow(self.session, self.ends), learned)

    def decode(self, way: str, workload: Workload, text: Text) -> tuple[Counts, list[int]]:
        """Decode one text and time it, from the prefix's logits to the last token."""
        learned = self.learned.setdefault((way, workload.name), Experience())
        prompt, limit = list(text.prompt), workload.limit
        logits = self.session.start(prompt)
        if self.draft is not None and way == "draft model":
            self.draft.start(prompt)
        verifier = Verifier(
            session=self.session,
            choose=_chooser(text),
            limit=min(limit, len(text.answer) or limit, CONTEXT - len(prompt)),
            ends=() if text.answer else self.ends,
            paces=self.ways(workload)[way](prompt, learned),
            learned=learned,
            tally=Tally(),
        )
        started = time.perf_counter()
        answer = [choice.token for choice in verifier.run(logits)]
        seconds, tally = time.perf_counter() - started, verifier.tally
        counts = Counts(len(answer) - 1, seconds, tally.calls, tally.drafted, tally.accepted)
        return counts, answer


def _chooser(text: Text) -> Chooser:
    greedy = make_chooser(make_sampler(0.0, 0, 1.0, 0.0, None), [])
    if not text.answer:
        return greedy

    def play(answer: Sequence[int], logits: Any) -> Choice:
        greedy(answer, logits)
        return Choice(text.answer[len(answer)])

    return play


def peer(llama: Llama, text: Text, answer: Sequence[int], most: int) -> Counts:
    """llama.cpp decoding the first `most` tokens of the same answer."""
    llama.prefill(text.prompt, causal=True)
    fed = list(answer[: min(most, len(answer) - 1)])
    started = time.perf_counter()
    for token in fed:
        llama.decode([token])[0].argmax()
    return Counts(len(fed), time.perf_counter() - started, len(fed))


Rounds = dict[str, dict[str, list[Counts]]]  # workload -> way -> a Counts for each round


def measure(files: Files, rounds: int, tokens: int, threads: int) -> Rounds:
    """Every way through every workload, text by text in turns, `rounds` times.

    A text before that is not counted: it brings files into memory. What a way has learned of a
    workload stays from round to round, as it does in a loaded model.
    """
    ours, found = Ours.open(files, threads), {}
    kinds = workloads(Tokenizer(files.bundle), tokens)
    with Llama(files.gguf, CONTEXT, threads) as llama:
        _warm_up(ours, llama, kinds[0])
        for _ in range(rounds):
            for workload in kinds:
                sums = {way: Counts() for way in (*ours.ways(workload), LLAMACPP)}
                for text in workload.texts:
                    answer: list[int] = []
                    for way in ours.ways(workload):
                        counts, said = ours.decode(way, workload, text)
                        sums[way].add(counts)
                        answer = answer or said
                    most = max(8, tokens // 2 // len(workload.texts))
                    sums[LLAMACPP].add(peer(llama, text, answer, most))
                for way, counts in sums.items():
                    found.setdefault(workload.name, {}).setdefault(way, []).append(counts)
    return found


def _warm_up(ours: Ours, llama: Llama, workload: Workload) -> None:
    for way in ours.ways(workload):
        _, answer = ours.decode(way, workload, workload.texts[0])
        peer(llama, workload.texts[0], answer, 4)
    ours.learned.clear()


def table(found: Rounds) -> str:
    """Markdown: medians over the rounds; ratios are medians of those within a round."""
    rows = [
        "| text | way | drafts right | tokens a call | tok/s | of plain | of llama.cpp |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, ways in found.items():
        for way, rounds in ways.items():
            drafted, accepted = (
                sum(getattr(c, k) for c in rounds) for k in ("drafted", "accepted")
            )
            calls, tokens = (sum(getattr(c, k) for c in rounds) for k in ("calls", "tokens"))
            cells = [name, way, f"{accepted} of {drafted}" if drafted else "-"]
            cells += [f"{tokens / calls:.2f}", f"{statistics.median(c.rate for c in rounds):.2f}"]
            cells += [f"{ratio(ways, way, base):.2f}" for base in (PLAIN, LLAMACPP)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def ratio(ways: dict[str, list[Counts]], way: str, base: str) -> float:
    """How many times as fast as `base`: the median over the rounds."""
    pairs = zip(ways[way], ways[base], strict=True)
    return statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the models.")
@click.option("--checkpoint", default=SHIPPED, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Without ending.")
@click.option("--size", type=click.Choice([*SIZES, "none"]), default="XL", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=48, show_default=True, help="Of each kind of text, about.")
@click.option("--threads", default=2, show_default=True)
@click.option("--prepare", is_flag=True, help="Make the models and stop.")
def main(
    work: Path,
    checkpoint: Path,
    out: Path | None,
    size: str,
    rounds: int,
    tokens: int,
    threads: int,
    prepare: bool,
) -> None:
    """Measure on an otherwise idle machine; write OUT.md and OUT.json."""
    try:
        library_folder()
    except HRMEdgeError:
        subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=Path(__file__).parent, check=True)
    every = models(work, None if size == "none" else sized(size), size, checkpoint)
    if prepare:
        return
    about, text, raw = machine(), [], {}
    for files in every:
        click.echo(f"measuring {files.name}", err=True)
        found = measure(files, rounds, tokens, threads)
        text += [f"## {files.name}", table(found)]
        raw[files.name] = {
            name: {way: [asdict(c) for c in counts] for way, counts in ways.items()}
            for name, ways in found.items()
        }
    text.append(", ".join(f"{k} {v}" for k, v in about.items()) + f"; {rounds} rounds of about ")
    text[-1] += f"{tokens} tokens each, {threads} threads."
    click.echo("\n\n".join(text))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text("\n\n".join(text) + "\n")
        settings = {"rounds": rounds, "tokens": tokens, "threads": threads}
        whole = {"machine": about, "settings": settings, "models": raw}
        out.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()

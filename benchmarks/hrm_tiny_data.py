"""The questions hrm-tiny learns from: families of reasoning-gym, as JSONL and a tokenizer.

    python -m benchmarks.hrm_tiny_data runs/hrm_tiny_data

writes warmup.jsonl and train.jsonl (the mixes of the two stages of training), valid.jsonl (to look
at while training) and test.jsonl (for the final figures). reasoning-gym draws item i of a data set
from `seed + i`, so the three seed ranges below cannot meet; a question that two of them draw all
the same stays in the held-out file and leaves the training sets. The wording is reasoning-gym's,
cut down to the sentence that carries the question; words that a task works on letter by letter are
written in capitals, which the tokenizer of `tokenizer_corpus` never merges: the model sees their
letters.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import reasoning_gym
from reasoning_gym.algorithmic.word_sorting import TextTransformation

from hrm_edge.training.tokenizer import train_tokenizer, write_tokenizer

Row = dict[str, str]  # instruction, response, condition, task
Rewrite = Callable[[str, str], tuple[str, str] | None]  # None: draw another one instead

FIRST_SEED = {"test": 0, "valid": 1_000_000, "train": 2_000_000}
VOCAB_SIZE, TOKENIZER_SAMPLE, CONTEXT = 512, 50_000, 512
HELD_OUT = {"test": 200, "valid": 50}  # per family
LONGEST_WORD = 7  # of those to reverse the order of
MALE_NAMES = ["James", "John", "Robert", "Michael", "David", "Peter", "Daniel", "George"]
FEMALE_NAMES = ["Mary", "Sarah", "Emma", "Laura", "Susan", "Alice", "Helen", "Nancy"]


def spell_backward(question: str, answer: str) -> tuple[str, str]:
    word = _match(r"Spell this word backward .*: (\w+)", question)[0]
    return f"Spell this word backward: {word.upper()}", answer.upper()


def chain_sum(question: str, answer: str) -> tuple[str, str]:
    return f"Calculate {_match(r'.*problem: (.*) =', question)[0]}", answer


def number_sorting(question: str, answer: str) -> tuple[str, str]:
    question = question.split("\n")[0]  # the rest describes the format of the answer
    return question.replace(".0", ""), answer.replace(".0", "")


def number_filtering(question: str, answer: str) -> tuple[str, str]:
    return question.split("\n")[0], answer


def letter_counting(question: str, answer: str) -> tuple[str, str]:
    letter, text = _match(r'How many .* letter "(.)" appear in the text: "(.*)"\?', question)
    return f'How many "{letter.upper()}" in "{text.upper()}"?', answer


def word_sorting(question: str, answer: str) -> tuple[str, str]:
    order, words = _match(r".* in (\w+) order .*list: (.*)\n", question)
    return f"Sort these words in {order} order: {words}", answer


def mini_sudoku(question: str, answer: str) -> tuple[str, str]:
    puzzle = _match(r".*\nSolve this 4x4 Mini Sudoku puzzle:\n([\d_ \n]+)\nFormat", question)[0]
    return f"Solve this 4x4 Mini Sudoku:\n{puzzle.replace(' ', '')}", answer.replace(" ", "")


def word_sequence_reversal(question: str, answer: str) -> tuple[str, str] | None:
    if max(len(word) for word in answer.split(", ")) > LONGEST_WORD:
        return None
    words = _match(r".*list of words: (.*)\n", question)[0]
    return f"Reverse this list of words: {words.upper()}", answer.upper()


def spiral_matrix(question: str, answer: str) -> tuple[str, str]:
    matrix = _match(r".* in spiral order\?\n([\d \n]+)", question)[0]
    return f"Spiral order of:\n{matrix.replace(' ', '')}", answer.replace(" ", "")


def rotate_matrix(question: str, answer: str) -> tuple[str, str]:
    degrees, matrix = _match(r".* by (\d+) degrees clockwise:\n([\d \n]+)", question)
    return f"Rotate by {degrees} degrees:\n{matrix.replace(' ', '')}", answer.replace(" ", "")


def family_relationships(question: str, answer: str) -> tuple[str, str] | None:
    # for these the generator's answer is the other person's role
    if answer in ("niece", "nephew") or answer.endswith("-in-law"):
        return None
    story, asked = question.split("\n\n")
    return f"{story} {asked.split('? ')[0]}?", answer


@dataclass(frozen=True)
class Family:
    """One reasoning-gym data set: how many lines of a training mix, our wording, its settings."""

    name: str
    lines: int
    rewrite: Rewrite
    settings: dict[str, Any]
    distinct: int = 0  # where questions are few: how many, repeated to fill the lines


SPELL = {"min_word_len": 3, "max_word_len": 8}
SORT = {"min_numbers": 3, "max_numbers": 5, "max_decimals": 0, "min_value": 0, "max_value": 99}
SUDOKU = {"min_empty": 4, "max_empty": 8}
SORT_WORDS = {
    "min_words": 3,
    "max_words": 3,
    "min_word_length": 3,
    "max_word_length": 5,
    "transformation": TextTransformation.UPPERCASE,
}
NAMES = {"male_names": MALE_NAMES, "female_names": FEMALE_NAMES}

# The mix of the first stage. Families that it did not learn were given up or made easier after it.
WARMUP = (
    Family("spell_backward", 30_000, spell_backward, SPELL),
    Family(
        "chain_sum",
        64_000,
        chain_sum,
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        distinct=16_000,
    ),
    Family("number_sorting", 40_000, number_sorting, SORT),
    Family(
        "number_filtering",
        40_000,
        number_filtering,
        {"min_numbers": 3, "max_numbers": 5, "max_decimals": 0},
    ),
    Family("letter_counting", 60_000, letter_counting, {"min_words": 2, "max_words": 3}),
    Family("word_sorting", 50_000, word_sorting, SORT_WORDS),
    Family("mini_sudoku", 50_000, mini_sudoku, SUDOKU),
    Family(
        "family_relationships",
        30_000,
        family_relationships,
        {"min_family_size": 4, "max_family_size": 6} | NAMES,
    ),
)

FAMILIES = (
    Family("spell_backward", 8_000, spell_backward, SPELL),
    Family(
        "chain_sum",
        50_000,
        chain_sum,
        {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
        distinct=3_700,  # of 4,200 that there are
    ),
    Family("number_sorting", 30_000, number_sorting, SORT),
    Family(
        "number_filtering",
        55_000,
        number_filtering,
        {"min_numbers": 3, "max_numbers": 4, "max_decimals": 0, "min_value": 0, "max_value": 99},
    ),
    Family("word_sorting", 35_000, word_sorting, SORT_WORDS),
    Family(
        "word_sequence_reversal",
        35_000,
        word_sequence_reversal,
        {"min_words": 3, "max_words": 3},
    ),
    Family("mini_sudoku", 15_000, mini_sudoku, SUDOKU),
    Family("spiral_matrix", 30_000, spiral_matrix, {"min_n": 3, "max_n": 4}),
    Family(
        "rotate_matrix",
        35_000,
        rotate_matrix,
        {"min_n": 2, "max_n": 3, "min_rotations": 1, "max_rotations": 3},
    ),
)


def draw(family: Family, split: str) -> Iterator[Row]:
    """An endless stream of questions of `family`, repeats included, from the seeds of `split`."""
    items = reasoning_gym.create_dataset(
        family.name, seed=FIRST_SEED[split], size=1_000_000, **family.settings
    )
    for index in range(len(items)):
        item = items[index]
        worded = family.rewrite(item["question"], item["answer"])
        if worded:
            question, answer = (text.strip() for text in worded)
            yield {
                "instruction": question,
                "response": answer,
                "condition": "direct",
                "task": family.name,
            }


def take(rows: Iterable[Row], count: int, seen: set[str]) -> list[Row]:
    """The first `count` rows whose question is not in `seen`; adds them to it. Gives up late."""
    taken: list[Row] = []
    for row in rows:
        if row["instruction"] not in seen:
            seen.add(row["instruction"])
            taken.append(row)
        if len(taken) == count:
            break
    return taken


def mix(families: Iterable[Family], avoid: Iterable[Row] = ()) -> dict[str, list[Row]]:
    """test, valid and train. No question is in two of them, nor a held-out one in `avoid`."""
    rows: dict[str, list[Row]] = {split: [] for split in FIRST_SEED}
    known = {row["instruction"] for row in avoid}
    for family in families:
        seen = set(known)
        for split, count in HELD_OUT.items():  # these first: training gets what they leave
            rows[split] += take(draw(family, split), count, seen)
        taken = take(draw(family, "train"), family.distinct or family.lines, seen - known)
        rows["train"] += islice(cycle(taken), family.lines)
    random.Random(0).shuffle(rows["train"])
    return rows


def tokenizer_corpus(rows: Iterable[Row]) -> Iterator[str]:
    """Text to learn merges from: everything but words in capitals, whose letters stay apart."""
    for row in rows:
        for text in (row["instruction"], row["response"]):
            yield re.sub(r"(,? ?[^\Wa-z\d]{2,})+|_", "", text)


def _match(pattern: str, question: str) -> tuple[str, ...]:
    found = re.match(pattern, question, re.DOTALL)
    assert found, f"reasoning-gym words its questions otherwise now: {question!r}"
    return found.groups()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="directory for the JSONL files and tokenizer/")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    warmup = mix(WARMUP)["train"]
    for split, rows in ({"warmup": warmup} | mix(FAMILIES, avoid=warmup)).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{split}: {len(lines)} questions")
    corpus = tokenizer_corpus(warmup[:TOKENIZER_SAMPLE])
    write_tokenizer(train_tokenizer(corpus, VOCAB_SIZE), out / "tokenizer", CONTEXT)


if __name__ == "__main__":
    main()

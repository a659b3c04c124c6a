"""Questions whose answers are long: hundreds of characters, most of them over 100 tokens.

    python -m benchmarks.long_answers_data runs/long_data

writes train.jsonl, valid.jsonl and test.jsonl and a tokenizer, as `hrm_tiny_data` does (whose
drawing and splitting this uses). hrm-tiny's own answers have twelve tokens on average; what an
error costs that grows with every further token is seen only on longer ones. Three families of
reasoning-gym: a sum with each step written out, a long list to sort, a matrix read in a spiral.
"""

import argparse
import json
import re
from pathlib import Path

from hrm_edge.training.tokenizer import train_tokenizer, write_tokenizer

from .hrm_tiny_data import (
    TOKENIZER_SAMPLE,
    VOCAB_SIZE,
    Family,
    mix,
    number_sorting,
    spiral_matrix,
    tokenizer_corpus,
)

CONTEXT = 512


def running_sum(question: str, answer: str) -> tuple[str, str]:
    """Each step on its own: "3 + 15 = 18, 18 - 7 = 11"."""
    found = re.match(r".*problem: (.*) =", question, re.DOTALL)
    assert found, f"reasoning-gym words its questions otherwise now: {question!r}"
    first, *rest = re.findall(r"[+-]?\s*\d+", found[1])
    total, steps = int(first), list[str]()
    for term in rest:
        value = int(term.replace(" ", ""))
        steps.append(f"{total} {'-' if value < 0 else '+'} {abs(value)} = {total + value}")
        total += value
    assert str(total) == answer, (question, answer)
    return f"Step by step: {found[1]}", ", ".join(steps)


FAMILIES = (
    Family(
        "chain_sum",
        24_000,
        running_sum,
        {"min_terms": 10, "max_terms": 14, "min_digits": 1, "max_digits": 2},
    ),
    Family(
        "number_sorting",
        16_000,
        number_sorting,
        {"min_numbers": 16, "max_numbers": 28, "max_decimals": 0, "min_value": 0, "max_value": 99},
    ),
    Family("spiral_matrix", 16_000, spiral_matrix, {"min_n": 6, "max_n": 8}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="directory for the JSONL files and tokenizer/")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    splits = mix(FAMILIES)
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{split}: {len(lines)} questions")
    corpus = tokenizer_corpus(splits["train"][:TOKENIZER_SAMPLE])
    write_tokenizer(train_tokenizer(corpus, VOCAB_SIZE), out / "tokenizer", CONTEXT)


if __name__ == "__main__":
    main()
